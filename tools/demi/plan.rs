//! What a configuration will do, for `--dry-run` and for the first lines of the log.

use std::fmt::Write;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use demi::conductor::config::Start;
use demi::config_file::Loaded;
use demi::plugins::{is_stand_in, names_demi, Refused};
use demi::{Config, Host, Mistake, Platform, Route};

/// Checks what only the machine can tell: whether commands exist and may be executed. Those of plugins were checked when
/// they were found.
pub(crate) fn check(config: &Config) -> Result<(), Vec<Mistake>> {
    let mistakes: Vec<Mistake> = config
        .platforms
        .iter()
        .enumerate()
        .filter_map(|(index, platform)| {
            let program = platform.command.first().filter(|_| platform.host.is_child() && platform.plugin.is_none())?;
            let what = missing(program)?;
            let remedy = "name an executable file, or a program on PATH".to_owned();
            Some(Mistake { at: format!("platforms[{index}].command"), what, remedy })
        })
        .collect();
    if mistakes.is_empty() {
        Ok(())
    } else {
        Err(mistakes)
    }
}

fn missing(program: &str) -> Option<String> {
    if names_demi(program) {
        return None;
    }
    let is_executable = |path: &PathBuf| {
        path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
    };
    let found = if program.contains('/') {
        is_executable(&PathBuf::from(program))
    } else {
        std::env::var_os("PATH")
            .is_some_and(|paths| std::env::split_paths(&paths).any(|path| is_executable(&path.join(program))))
    };
    (!found).then(|| format!("{program:?} is not there or not executable"))
}

/// The plan, for a person to read.
pub(crate) fn describe(loaded: &Loaded, path: &Path) -> String {
    let Loaded { config, refused, .. } = loaded;
    let mut text = String::new();
    let order = config.start_order().unwrap_or_default();
    // Writing to a string cannot fail.
    let _ = writeln!(text, "configuration  {}", path.display());
    let _ = writeln!(text, "listen         http://{}", config.http.listen);
    let store = path.parent().unwrap_or(Path::new("")).join(&config.store.path);
    let _ = writeln!(text, "store          {}", store.display());
    let _ = writeln!(text, "start order    {}", names(config, &order));
    for index in &order {
        let platform = &config.platforms[*index];
        let _ = writeln!(text, "  {:<13}{}; {}", platform.name, host(platform), start(platform));
        if let Some(plugin) = platform.plugin.as_ref().filter(|_| !is_stand_in(platform)) {
            let _ = writeln!(text, "  {:<13}version {} in {}", "", plugin.version, plugin.folder.display());
        }
        if !platform.needs.is_empty() {
            let _ = writeln!(text, "  {:<13}needs {}", "", platform.needs.join(", "));
        }
    }
    if !refused.is_empty() {
        let _ = writeln!(text, "refused        what is told here, and nothing else");
    }
    for refused in refused {
        for line in format!("{refused}{}", consequence(config, refused)).lines() {
            let _ = writeln!(text, "  {line}");
        }
    }
    let _ = writeln!(text, "routes         higher priority first, then this order; first match wins");
    for (index, route) in config.routes.iter().enumerate() {
        let matchers = matchers(route);
        let what = if matchers.is_empty() {
            "every other message (POST /v1/requests)".to_owned()
        } else {
            matchers.join(", ")
        };
        let _ = writeln!(text, "  {:>2}  {what} → {} within {} ms", index + 1, chain(route), route.timeout_ms.value());
    }
    if !loaded.warnings.is_empty() {
        let _ = writeln!(text, "warnings       what is most likely not meant so");
    }
    for warning in &loaded.warnings {
        let _ = writeln!(text, "  {}", warning.at(path));
    }
    let _ = writeln!(text, "nothing was started and nothing was written");
    text
}

/// Who gets what a route takes, one after the other.
fn chain(route: &Route) -> String {
    std::iter::once(&route.to).chain(&route.fallback).map(String::as_str).collect::<Vec<&str>>().join(", else ")
}

/// What a route looks at.
pub(crate) fn matchers(route: &Route) -> Vec<String> {
    let texts = [
        (route.priority != 0).then(|| format!("priority {}", route.priority)),
        route.from.as_ref().map(|from| format!("from {from}")),
        route.kind.as_ref().map(|kind| format!("kind {kind}")),
        route.method.as_ref().map(|method| format!("method {method}")),
        route.host.as_ref().map(|host| format!("host {host}")),
        route.path.as_ref().map(|path| format!("path {path}")),
    ];
    let headers = route.headers.iter().map(|(name, value)| format!("header {name} {value:?}"));
    let content = route.content.as_ref().map(|content| match route.ignore_case {
        true => format!("content {content:?} in any case"),
        false => format!("content {content:?}"),
    });
    texts.into_iter().flatten().chain(headers).chain(content).collect()
}

fn names(config: &Config, order: &[usize]) -> String {
    let names: Vec<&str> = order.iter().map(|index| config.platforms[*index].name.as_str()).collect();
    if names.is_empty() {
        "no platforms".to_owned()
    } else {
        names.join(" → ")
    }
}

/// What a refusal means for what the configuration says, to be appended to it.
pub(crate) fn consequence(config: &Config, refused: &Refused) -> String {
    let stands_in = |platform: &&Platform| is_stand_in(platform) && Some(&platform.name) == refused.name.as_ref();
    match config.platforms.iter().find(stands_in) {
        Some(platform) => format!("; until then requests for {} are answered 503", platform.name),
        None => String::new(),
    }
}

fn start(platform: &Platform) -> &'static str {
    match (platform.host, platform.start) {
        (Host::Http, _) => "runs elsewhere",
        (_, Start::Eager) => "starts at once",
        (_, Start::Lazy) => "starts at its first request",
        (_, Start::Manual) => "starts by hand",
    }
}

fn host(platform: &Platform) -> String {
    if is_stand_in(platform) {
        return "a plugin that is refused".to_owned();
    }
    match platform.host {
        Host::Inline => format!("inline, adapter {}", platform.adapter()),
        Host::Threads(count) => format!("{count} worker threads, adapter {}", platform.adapter()),
        Host::Process(count) => format!("{count} processes: {}", platform.command.join(" ")),
        Host::Mcp(count) => format!("{count} MCP servers: {}", platform.command.join(" ")),
        Host::Http => format!("upstream {}", platform.upstreams.join(", ")),
    }
}

/// Commands to try at once, made from the routes there are.
pub(crate) fn suggestions(config: &Config, address: SocketAddr) -> Vec<String> {
    let everything = config.routes.iter().any(|route| matchers(&Route { priority: 0, ..route.clone() }).is_empty());
    let mut lines = Vec::new();
    if everything {
        lines.push(format!("try: curl http://{address}/v1/requests -d '{{\"content\":\"hello\"}}'"));
    }
    let mut paths = config.routes.iter().filter_map(|route| route.path.as_deref());
    if let Some(path) = paths.find(|path| !path.contains('{')) {
        lines.push(format!("try: curl http://{address}{}", path.strip_suffix("/*").unwrap_or(path)));
    }
    lines.push(format!("try: curl http://{address}/v1/platforms"));
    lines
}
