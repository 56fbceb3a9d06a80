//! Where the configuration is looked for.

use std::path::PathBuf;

/// The first of the candidates that is there.
pub(crate) fn find() -> Option<PathBuf> {
    candidates().into_iter().find(|path| path.is_file())
}

/// Where a configuration is looked for when none is named, in this order.
pub(crate) fn candidates() -> Vec<PathBuf> {
    let home = std::env::var_os("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".config")));
    let mut paths = vec![PathBuf::from("config.ron")];
    paths.extend(home.map(|home| home.join("demi/config.ron")));
    paths.push(PathBuf::from("/etc/demi/config.ron"));
    paths
}
