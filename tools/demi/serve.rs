//! `demi plugin serve ADAPTER`: a compiled-in adapter as a child process of another Demi.

use std::process::ExitCode;

use crate::{adapter_names, ADAPTERS, FAILED, USAGE};

/// Serves until stdin ends or the host says so.
pub(crate) fn serve(name: &str) -> ExitCode {
    let Some(adapter) = ADAPTERS.iter().find(|adapter| adapter.name == name) else {
        eprintln!("demi: no adapter is named {name:?}; compiled in are: {}", adapter_names().join(", "));
        return ExitCode::from(USAGE);
    };
    match demi::plugin_main((adapter.make)().as_mut()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demi: the host is gone: {error}");
            ExitCode::from(FAILED)
        }
    }
}
