//! What a plugin says of itself: the `plugin.ron` or `plugin.json` of its folder.
//!
//! Reading the file is the reactor's part, as with the configuration; what the fields mean and default to is decided
//! here. A manifest becomes a [`Platform`] like any other.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::config::{
    nearest, Balance, Bounded, Host, Limits, Mistake, OwnBreaker, OwnHealth, Permissions, Platform, Plugin, Start,
};

/// The names by which a manifest says what its plugin speaks.
pub const PROTOCOLS: [&str; 2] = ["demi/1", "mcp"];

/// What a plugin may say that it can do; anything else is a mistake.
pub const CAPABILITIES: [&str; 4] = ["cancel", "concurrent", "route", "trim"];

/// A plugin's manifest.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Unique among all platforms; letters, digits, `-` and `_`, at most 64.
    pub name: String,
    /// The plugin's own version, for people; at most 64 characters.
    pub version: String,
    /// One of [`PROTOCOLS`].
    #[serde(default = "newest")]
    pub protocol: String,
    /// The program and its arguments. One with a slash starts at the folder, one without is looked for on PATH.
    pub command: Vec<String>,
    /// Its environment; nothing else is passed on but PATH and what Demi itself says.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Handed to it when it is initialised.
    #[serde(default)]
    pub settings: BTreeMap<String, String>,
    /// Some of [`CAPABILITIES`].
    #[serde(default)]
    pub capabilities: Vec<String>,
    /// Platforms that must be ready before it starts.
    #[serde(default)]
    pub needs: Vec<String>,
    /// As in [`Platform::behind`].
    #[serde(default)]
    pub behind: Vec<String>,
    /// As in [`Platform::health`].
    #[serde(default)]
    pub health: OwnHealth,
    /// As in [`Platform::breaker`].
    #[serde(default)]
    pub breaker: OwnBreaker,
    /// When it is started.
    #[serde(default = "lazy")]
    pub start: Start,
    /// As in [`Platform::sleep_after_ms`].
    #[serde(default)]
    pub sleep_after_ms: Option<Bounded<100, 86_400_000, 1>>,
    /// How many processes of it run.
    #[serde(default)]
    pub instances: Bounded<1, 256, 1>,
    /// As in [`Platform::in_flight_max`].
    #[serde(default)]
    pub in_flight_max: Option<Bounded<1, 4096, 1>>,
    /// As in [`Platform::balance`]; with `Weighted` each process counts as it reports of itself, or else 1.
    #[serde(default)]
    pub balance: Balance,
    /// As in [`Platform::queue_max`].
    #[serde(default)]
    pub queue_max: Bounded<0, 65_536, 256>,
    /// As in [`Platform::queue_age_max_ms`].
    #[serde(default)]
    pub queue_age_max_ms: Option<Bounded<1, 3_600_000, 1>>,
    /// Longest attempt at a request, whatever its route allows.
    #[serde(default)]
    pub request_timeout_ms: Bounded<1, 3_600_000, 5_000>,
    /// As in [`Platform::start_timeout_ms`].
    #[serde(default)]
    pub start_timeout_ms: Bounded<10, 3_600_000, 90_000>,
    /// As in [`Platform::stop_grace_ms`].
    #[serde(default)]
    pub stop_grace_ms: Bounded<0, 3_600_000, 5_000>,
    /// As in [`Platform::drain_ms`].
    #[serde(default)]
    pub drain_ms: Bounded<0, 3_600_000, 30_000>,
    /// As in [`Platform::restart_dependents`].
    #[serde(default)]
    pub restart_dependents: bool,
    /// As in [`Platform::start_budget_per_day`].
    #[serde(default)]
    pub start_budget_per_day: Bounded<1, 1_000_000, 1_000>,
    /// As in [`Platform::shed`].
    #[serde(default)]
    pub shed: Option<bool>,
    /// As in [`Platform::priority`].
    #[serde(default)]
    pub priority: Option<Bounded<0, 1_000, 400>>,
    /// As in [`Platform::value`].
    #[serde(default)]
    pub value: Option<Bounded<1, 1_000, 100>>,
    /// What it may use.
    #[serde(default)]
    pub limits: Limits,
    /// What it may ask of Demi.
    #[serde(default)]
    pub permissions: Permissions,
    /// A changed manifest or executable is taken up without being told to.
    #[serde(default)]
    pub hot_reload: bool,
}

fn newest() -> String {
    PROTOCOLS[0].to_owned()
}

fn lazy() -> Start {
    Start::Lazy
}

impl Manifest {
    /// Checks what types cannot and what can be judged without the other platforms. Every mistake.
    pub fn mistakes(&self) -> Vec<Mistake> {
        let mut found = Vec::new();
        let mut add = |at: &str, what: String, remedy: String| found.push(Mistake { at: at.to_owned(), what, remedy });
        if self.version.is_empty() || self.version.chars().count() > 64 || self.version.chars().any(char::is_control) {
            add("version", format!("{:?} is not a version", self.version), "write for example \"1.0.0\"".to_owned());
        }
        if !PROTOCOLS.contains(&self.protocol.as_str()) {
            let remedy = match nearest(&self.protocol, &PROTOCOLS) {
                Some(near) => format!("this Demi speaks {}; did you mean {near:?}?", PROTOCOLS.join(" and ")),
                None => format!("this Demi speaks {}", PROTOCOLS.join(" and ")),
            };
            add("protocol", format!("{:?} is no protocol that is spoken here", self.protocol), remedy);
        }
        for (index, capability) in self.capabilities.iter().enumerate() {
            if !CAPABILITIES.contains(&capability.as_str()) {
                let remedy = match nearest(capability, &CAPABILITIES) {
                    Some(near) => format!("did you mean {near:?}?"),
                    None => format!("known are: {}", CAPABILITIES.join(", ")),
                };
                add(&format!("capabilities[{index}]"), format!("no capability is named {capability:?}"), remedy);
            }
        }
        if self.protocol == "mcp" && self.permissions != Permissions::default() {
            add(
                "permissions",
                "an MCP server asks nothing of its host".to_owned(),
                "remove it, or speak demi/1".to_owned(),
            );
        }
        found
    }

    /// The platform that it describes, in the folder that it was found in.
    pub fn platform(&self, folder: &Path, manifest: &Path) -> Platform {
        let count = self.instances.count() as u16;
        let host = if self.protocol == "mcp" { Host::Mcp(count) } else { Host::Process(count) };
        let mut command = self.command.clone();
        if let Some(program) = command.first_mut().filter(|program| program.contains('/')) {
            *program = folder.join(&*program).display().to_string();
        }
        Platform {
            command,
            env: self.env.clone(),
            settings: self.settings.clone(),
            directory: Some(folder.display().to_string()),
            needs: self.needs.clone(),
            behind: self.behind.clone(),
            health: self.health,
            breaker: self.breaker,
            start: self.start,
            sleep_after_ms: self.sleep_after_ms,
            in_flight_max: self.in_flight_max,
            balance: self.balance,
            queue_max: self.queue_max,
            queue_age_max_ms: self.queue_age_max_ms,
            request_timeout_ms: Bounded::new(self.request_timeout_ms.value()),
            start_timeout_ms: self.start_timeout_ms,
            stop_grace_ms: self.stop_grace_ms,
            drain_ms: self.drain_ms,
            restart_dependents: self.restart_dependents,
            start_budget_per_day: self.start_budget_per_day,
            shed: self.shed,
            priority: self.priority,
            value: self.value,
            limits: self.limits.clone(),
            permissions: self.permissions,
            hot_reload: self.hot_reload,
            plugin: Some(Plugin {
                folder: folder.to_owned(),
                manifest: manifest.to_owned(),
                version: self.version.clone(),
                capabilities: self.capabilities.clone(),
            }),
            ..Platform::new(&self.name, host)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        Manifest {
            name: "weather".to_owned(),
            version: "1.0.0".to_owned(),
            protocol: newest(),
            command: vec!["./weather.py".to_owned(), "--metric".to_owned()],
            env: BTreeMap::new(),
            settings: BTreeMap::new(),
            capabilities: Vec::new(),
            needs: Vec::new(),
            behind: Vec::new(),
            health: OwnHealth::default(),
            breaker: OwnBreaker::default(),
            start: lazy(),
            sleep_after_ms: None,
            instances: Bounded::default(),
            in_flight_max: None,
            balance: Balance::default(),
            queue_max: Bounded::default(),
            queue_age_max_ms: None,
            request_timeout_ms: Bounded::default(),
            start_timeout_ms: Bounded::default(),
            stop_grace_ms: Bounded::default(),
            drain_ms: Bounded::default(),
            restart_dependents: false,
            start_budget_per_day: Bounded::default(),
            shed: None,
            priority: None,
            value: None,
            limits: Limits::default(),
            permissions: Permissions::default(),
            hot_reload: false,
        }
    }

    #[test]
    fn a_manifest_becomes_a_platform_that_starts_at_its_first_request_in_its_folder() {
        let platform = manifest().platform(Path::new("/plugins/weather"), Path::new("/plugins/weather/plugin.json"));
        assert_eq!(platform.command, ["/plugins/weather/./weather.py", "--metric"]);
        assert_eq!((platform.host, platform.start), (Host::Process(1), Start::Lazy));
        assert_eq!(platform.directory.as_deref(), Some("/plugins/weather"));
        assert_eq!(platform.request_timeout_ms.map(Bounded::value), Some(5_000));
    }

    #[test]
    fn an_unknown_protocol_is_told_with_those_that_are_spoken() {
        let manifest = Manifest { protocol: "demi/2".to_owned(), ..manifest() };
        let mistakes = manifest.mistakes();
        assert_eq!(mistakes.len(), 1);
        assert_eq!(mistakes[0].at, "protocol");
        assert!(mistakes[0].remedy.contains("demi/1 and mcp"), "{}", mistakes[0]);
    }

    #[test]
    fn an_unknown_capability_is_told_with_the_nearest() {
        let manifest = Manifest { capabilities: vec!["trimm".to_owned()], ..manifest() };
        assert_eq!(manifest.mistakes()[0].remedy, "did you mean \"trim\"?");
    }
}
