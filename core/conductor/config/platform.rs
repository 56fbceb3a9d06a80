//! A platform: what runs it, what it may use, and which of its instances gets a request.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{check_name, proxy, Bounded, Mistakes, OwnBreaker, OwnHealth, OwnOutliers, HOUR_MS};
use crate::event::WEIGHT_MAX;

/// What runs an integration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub enum Host {
    /// On the reactor's own thread; the adapter must never block.
    Inline,
    /// On so many worker threads, each an instance with its own adapter.
    Threads(u16),
    /// In so many child processes, each an instance, spoken to over stdin and stdout.
    Process(u16),
    /// In so many child processes that are Model Context Protocol servers on stdin and stdout.
    Mcp(u16),
    /// HTTP services that run elsewhere; each address is an instance.
    Http,
}

impl Host {
    /// Whether its instances are child processes.
    pub const fn is_child(self) -> bool {
        matches!(self, Host::Process(_) | Host::Mcp(_))
    }

    /// Whether ending a run and starting another is a cure: a thread or process, not a remote service.
    pub const fn can_be_replaced(self) -> bool {
        matches!(self, Host::Threads(_) | Host::Process(_) | Host::Mcp(_))
    }

    /// Whether an instance can be initialised again without being ended.
    pub const fn can_be_initialized_again(self) -> bool {
        matches!(self, Host::Inline | Host::Threads(_) | Host::Process(_))
    }

    /// The name in status.
    pub const fn name(self) -> &'static str {
        match self {
            Host::Inline => "inline",
            Host::Threads(_) => "threads",
            Host::Process(_) => "process",
            Host::Mcp(_) => "mcp",
            Host::Http => "http",
        }
    }
}

/// When a platform is started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize)]
pub enum Start {
    /// At its first request.
    Lazy,
    /// When Demi begins.
    #[default]
    Eager,
    /// When a person says so.
    Manual,
}

/// What a child process may use. What the kernel does not hold it to is looked after every second.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Resident memory of an instance's whole process tree above which it is asked to give some back (`trim`), MB of
    /// 10^6 bytes.
    pub memory_soft_mb: Option<Bounded<1, 1_000_000, 1>>,
    /// Above this it is killed and started again.
    pub memory_max_mb: Option<Bounded<1, 1_000_000, 1>>,
    /// Most processes in the tree; one more and it is killed.
    pub processes_max: Bounded<1, 100_000, 64>,
    /// Most open descriptors of each process (`RLIMIT_NOFILE`).
    pub descriptors_max: Bounded<16, 1_048_576, 1_024>,
    /// Longest file that it may write, MB (`RLIMIT_FSIZE`); none if absent.
    pub file_max_mb: Option<Bounded<1, 1_000_000, 1>>,
    /// Processor time of each process, seconds (`RLIMIT_CPU`); none if absent.
    pub cpu_max_s: Option<Bounded<1, 100_000_000, 1>>,
    /// Bytes of log lines that are kept in a second; the rest is counted and dropped.
    pub log_bytes_per_second_max: Bounded<1_024, 16_777_216, 65_536>,
}

/// What a plugin may ask of Demi.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Permissions {
    /// `route`: put requests of its own to the routing table.
    pub route: bool,
    /// `store.get` and `store.put`: keep values of its own in Demi's store.
    pub store: bool,
}

/// Where a platform that was found in a plugin folder came from, and what its manifest says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plugin {
    /// The folder.
    pub folder: std::path::PathBuf,
    /// Its manifest.
    pub manifest: std::path::PathBuf,
    /// The plugin's own version.
    pub version: String,
    /// What it says that it can do.
    pub capabilities: Vec<String>,
}

/// An integration.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Platform {
    /// Unique; letters, digits, `-` and `_`, at most 64.
    pub name: String,
    /// What runs it.
    pub host: Host,
    /// For `Inline` and `Threads`: the name of a compiled-in adapter. Default: the platform's own name.
    #[serde(default)]
    pub adapter: Option<String>,
    /// For `Process` and `Mcp`: the program and its arguments. `{demi}` stands for Demi's own executable.
    #[serde(default)]
    pub command: Vec<String>,
    /// For `Process` and `Mcp`: the child's environment; nothing else is passed on but PATH.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// For `Process` and `Mcp`: the child's working directory. Default: that of Demi; of a plugin, its folder.
    #[serde(default)]
    pub directory: Option<String>,
    /// For `Http`: `address:port` of each instance.
    #[serde(default)]
    pub upstreams: Vec<String>,
    /// For `Http`: the path that a probe asks for. Without it a TCP connection is enough.
    #[serde(default)]
    pub health_path: Option<String>,
    /// For `Http` with `health_path`: the method of the probe. Default: GET.
    #[serde(default)]
    pub health_method: Option<String>,
    /// For `Http` with `health_path`: the statuses that pass, from the first to the last. Default: 200 to 399.
    #[serde(default)]
    pub health_status: Option<(u16, u16)>,
    /// For `Http` with `health_path`: what must stand somewhere in the first 64 KiB of the answer's body.
    #[serde(default)]
    pub health_body: Option<String>,
    /// How its instances are probed, where that is otherwise than for all.
    #[serde(default)]
    pub health: OwnHealth,
    /// When they are cut off, where that is otherwise than for all.
    #[serde(default)]
    pub breaker: OwnBreaker,
    /// When they are kept from requests for being worse than their peers, where that is otherwise than for all.
    #[serde(default)]
    pub outliers: OwnOutliers,
    /// Names of `reachability` that it depends on: while one of them cannot be reached, this platform is not blamed.
    #[serde(default)]
    pub behind: Vec<String>,
    /// Handed to the adapter or plugin when it is initialised.
    #[serde(default)]
    pub settings: BTreeMap<String, String>,
    /// Platforms that must be ready before this one starts, and stop after it.
    #[serde(default)]
    pub needs: Vec<String>,
    /// When it is started. An `Http` platform, which runs elsewhere, is always `Eager`.
    #[serde(default)]
    pub start: Start,
    /// For all but `Http`: without a request for this long it is ended; its next request starts it and waits.
    #[serde(default)]
    pub sleep_after_ms: Option<Bounded<100, { 24 * HOUR_MS }, 1>>,
    /// Whether those that need it are restarted after it when it has ended and come back.
    #[serde(default)]
    pub restart_dependents: bool,
    /// Most starts in a day (UTC): a warning at 80 %, no more by itself at 95 %; what is left, one at
    /// least, is for a person.
    #[serde(default)]
    pub start_budget_per_day: Bounded<1, 1_000_000, 1_000>,
    /// Longest attempt at a request, whatever its route allows; and the time for a request that names the platform.
    /// Default: as the route says, and 5,000 for one without a route.
    #[serde(default)]
    pub request_timeout_ms: Option<Bounded<1, HOUR_MS, 1>>,
    /// For all but `Inline`, which has one at a time: most requests at once in one instance. Default: 1 for `Threads`,
    /// 32 for `Process`, 64 for `Http`.
    #[serde(default)]
    pub in_flight_max: Option<Bounded<1, 4096, 1>>,
    /// Which of its instances gets a request.
    #[serde(default)]
    pub balance: Balance,
    /// For `Weighted`: how often each of `upstreams`, or of the processes, is asked against the others. What an instance
    /// reports of itself comes before it. Default: 1 each, where instances can report: of `Process`, and of `Http` with
    /// `health_path`.
    #[serde(default)]
    pub weights: Vec<Bounded<1, { WEIGHT_MAX as u64 }, 1>>,
    /// For `Http` with balance `Sticky`: the name of a cookie that stands for a plain HTTP request's key, and that a client
    /// gets which brings neither that nor a `Demi-Key`.
    #[serde(default)]
    pub sticky_cookie: Option<String>,
    /// With `sticky_cookie`: how long its client keeps it, seconds. Default: as long as the client's session lasts. Browsers
    /// keep none for more than 400 days.
    #[serde(default)]
    pub sticky_cookie_max_age_s: Option<Bounded<1, 34_560_000, 1>>,
    /// Most requests that wait for an instance, of every urgency together; one more is refused with 503, or the last of
    /// the least urgent if that is less urgent.
    #[serde(default)]
    pub queue_max: Bounded<0, 65_536, 256>,
    /// When one of those that wait has waited for longer, a new request that is no more urgent is refused with 503 at once:
    /// it would wait as long. What was spent waiting for an instance to be there does not count. Default: each waits as
    /// long as its own time allows.
    #[serde(default)]
    pub queue_age_max_ms: Option<Bounded<1, HOUR_MS, 1>>,
    /// A start that takes longer is ended and tried again.
    #[serde(default)]
    pub start_timeout_ms: Bounded<10, HOUR_MS, 90_000>,
    /// From the order to end to KILL; a process gets TERM after a second of it, or after half if that is shorter.
    #[serde(default)]
    pub stop_grace_ms: Bounded<0, HOUR_MS, 5_000>,
    /// For `Threads`: a worker that holds a request this long after its deadline is given up and replaced.
    #[serde(default)]
    pub wedged_ms: Bounded<100, HOUR_MS, 30_000>,
    /// When an instance is replaced, stopped or put to sleep: its requests have this long to end.
    #[serde(default)]
    pub drain_ms: Bounded<0, HOUR_MS, 30_000>,
    /// For `Threads`, `Process` and `Mcp`: whether it may be stopped while RAM runs short. Default: `Process` and `Mcp` may.
    #[serde(default)]
    pub shed: Option<bool>,
    /// For `Threads`, `Process` and `Mcp`: of those that may be shed, the one with the lowest priority goes first and comes back
    /// last. Default: 100 if "voice" stands in its name, 200 if "android" does, 300 if "discord" does, else 400.
    #[serde(default)]
    pub priority: Option<Bounded<0, 1_000, 400>>,
    /// For `Threads`, `Process` and `Mcp`: what its service is worth against that of others with the same priority. The one that is
    /// worth least for each MB that it weighs is shed first.
    #[serde(default)]
    pub value: Option<Bounded<1, 1_000, 100>>,
    /// For `Process` and `Mcp`: what each instance may use.
    #[serde(default)]
    pub limits: Limits,
    /// For `Process`: what it may ask of Demi.
    #[serde(default)]
    pub permissions: Permissions,
    /// For `Process` and `Mcp`: a changed manifest or executable is taken up without being told to.
    #[serde(default)]
    pub hot_reload: bool,
    /// Where it was found, if not in the configuration.
    #[serde(skip)]
    pub plugin: Option<Plugin>,
}

impl Platform {
    /// A platform with every default, for embedders and tests.
    pub fn new(name: &str, host: Host) -> Platform {
        Platform {
            name: name.to_owned(),
            host,
            adapter: None,
            command: Vec::new(),
            env: BTreeMap::new(),
            directory: None,
            upstreams: Vec::new(),
            health_path: None,
            health_method: None,
            health_status: None,
            health_body: None,
            health: OwnHealth::default(),
            breaker: OwnBreaker::default(),
            outliers: OwnOutliers::default(),
            behind: Vec::new(),
            settings: BTreeMap::new(),
            needs: Vec::new(),
            start: Start::default(),
            sleep_after_ms: None,
            restart_dependents: false,
            start_budget_per_day: Bounded::default(),
            request_timeout_ms: None,
            in_flight_max: None,
            balance: Balance::default(),
            weights: Vec::new(),
            sticky_cookie: None,
            sticky_cookie_max_age_s: None,
            queue_max: Bounded::default(),
            queue_age_max_ms: None,
            start_timeout_ms: Bounded::default(),
            stop_grace_ms: Bounded::default(),
            wedged_ms: Bounded::default(),
            drain_ms: Bounded::default(),
            shed: None,
            priority: None,
            value: None,
            limits: Limits::default(),
            permissions: Permissions::default(),
            hot_reload: false,
            plugin: None,
        }
    }

    /// How many instances it has.
    pub fn instances(&self) -> usize {
        match self.host {
            Host::Inline => 1,
            Host::Threads(count) | Host::Process(count) | Host::Mcp(count) => usize::from(count),
            Host::Http => self.upstreams.len(),
        }
    }

    /// How many slots the conductor has for it: one for each instance, and for child processes one more, in which a new
    /// edition is started beside the old.
    pub fn slots(&self) -> usize {
        self.instances() + usize::from(self.host.is_child())
    }

    /// Most requests at once in one instance.
    pub fn in_flight_max(&self) -> u32 {
        match (self.in_flight_max, self.host) {
            (_, Host::Inline) => 1,
            (Some(bound), _) => bound.count(),
            (None, Host::Threads(_)) => 1,
            (None, Host::Process(_) | Host::Mcp(_)) => 32,
            (None, Host::Http) => 64,
        }
    }

    /// Whether it may be stopped while RAM runs short.
    pub fn may_be_shed(&self) -> bool {
        self.shed.unwrap_or(self.host.is_child()) && self.host.can_be_replaced()
    }

    /// Of those that may be shed, the one with the lowest goes first.
    pub fn priority(&self) -> u32 {
        let of_its_kind = || {
            let name = self.name.to_ascii_lowercase();
            let kinds = [("voice", 100), ("android", 200), ("discord", 300)];
            kinds.iter().find(|(kind, _)| name.contains(kind)).map_or(400, |(_, priority)| *priority)
        };
        self.priority.map_or_else(of_its_kind, |bound| bound.count())
    }

    /// The compiled-in adapter it names.
    pub fn adapter(&self) -> &str {
        self.adapter.as_deref().unwrap_or(&self.name)
    }
}

/// Which of a platform's instances that take requests gets one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize)]
pub enum Balance {
    /// Of two drawn at random the one that has less to do.
    #[default]
    LeastInFlight,
    /// Each in its turn.
    RoundRobin,
    /// For `Http` and `Process`: each in its turn, as often as it reports, or else as its `weights` says.
    Weighted,
    /// Requests with the same key (`Demi-Key`, or the platform's `sticky_cookie`) go to the same instance as long as that
    /// takes requests; those without a key as by `LeastInFlight`.
    Sticky,
}

impl Platform {
    pub(super) fn check(&self, at: &str, adapters: &[&str], names: &[&str], found: &mut Mistakes) {
        check_name(&format!("{at}.name"), &self.name, found);
        for (index, need) in self.needs.iter().enumerate() {
            if !names.contains(&need.as_str()) {
                found.add_unknown(format!("{at}.needs[{index}]"), "platform", need, names);
            }
        }
        match self.host {
            Host::Inline | Host::Threads(_) => {
                if !adapters.contains(&self.adapter()) {
                    let at = if self.adapter.is_some() { format!("{at}.adapter") } else { format!("{at}.name") };
                    found.add_unknown(at, "adapter", self.adapter(), adapters);
                }
            }
            Host::Process(_) | Host::Mcp(_) => {
                if self.command.first().is_none_or(String::is_empty) {
                    found.add(
                        format!("{at}.command"),
                        format!("platform {:?} is a process without a command", self.name),
                        "add command: [\"program\", \"argument\"]",
                    );
                }
            }
            Host::Http => self.check_upstreams(at, found),
        }
        if let Host::Threads(count) | Host::Process(count) | Host::Mcp(count) = self.host {
            if count == 0 || count > 256 {
                found.add(
                    format!("{at}.host"),
                    format!("{count} instances is outside 1 to 256"),
                    "write for example Process(2)",
                );
            }
        }
        for name in self.env.keys() {
            if name.is_empty() || name.contains(['=', '\0']) {
                found.add(
                    format!("{at}.env"),
                    format!("{name:?} is not the name of an environment variable"),
                    "use a name without '='",
                );
            }
        }
        if let (Some(soft), Some(hard)) = (self.limits.memory_soft_mb, self.limits.memory_max_mb) {
            if soft.value() > hard.value() {
                found.add(
                    format!("{at}.limits.memory_soft_mb"),
                    "is above memory_max_mb".to_owned(),
                    "lower it, so that there is time to trim before the kill",
                );
            }
        }
        let is_weighted = self.balance == Balance::Weighted;
        let is_process = matches!(self.host, Host::Process(_));
        let is_left_to_them = self.weights.is_empty() && (is_process || self.health_path.is_some());
        let fits = is_left_to_them || self.weights.len() == self.instances();
        if is_weighted && !fits && (is_process || self.host == Host::Http) {
            let noun = if self.host == Host::Http { "upstream" } else { "instance" };
            found.add(
                format!("{at}.weights"),
                format!("{} weights for {} {noun}s", self.weights.len(), self.instances()),
                &format!("write one for each {noun}, as in weights: [3, 1], or another balance"),
            );
        } else if !is_weighted && !self.weights.is_empty() {
            found.add(
                format!("{at}.weights"),
                format!("weights means nothing for balance {:?}", self.balance),
                "remove it, or write balance: Weighted",
            );
        }
        self.check_cookie(at, found);
        self.check_strays(at, found);
    }

    fn check_cookie(&self, at: &str, found: &mut Mistakes) {
        let Some(name) = &self.sticky_cookie else {
            if self.sticky_cookie_max_age_s.is_some() {
                let what = "sticky_cookie_max_age_s means nothing without sticky_cookie".to_owned();
                found.add(format!("{at}.sticky_cookie_max_age_s"), what, "add sticky_cookie: \"demi_session\"");
            }
            return;
        };
        if !proxy::is_token(name) {
            let remedy = "use letters, digits, '-' and '_', as in \"demi_session\"";
            found.add(format!("{at}.sticky_cookie"), format!("{name:?} is not the name of a cookie"), remedy);
        }
        if name.starts_with("__Host-") || name.starts_with("__Secure-") {
            let what = format!("browsers take a cookie named {name:?} only over https, which Demi does not speak");
            found.add(format!("{at}.sticky_cookie"), what, "choose another name, as in \"demi_session\"");
        }
        if self.balance != Balance::Sticky {
            let what = format!("sticky_cookie means nothing for balance {:?}", self.balance);
            found.add(format!("{at}.sticky_cookie"), what, "remove it, or write balance: Sticky");
        }
    }

    fn check_upstreams(&self, at: &str, found: &mut Mistakes) {
        if self.upstreams.is_empty() || self.upstreams.len() > 256 {
            found.add(
                format!("{at}.upstreams"),
                format!("platform {:?} has {} upstreams", self.name, self.upstreams.len()),
                "add 1 to 256, as in upstreams: [\"127.0.0.1:3000\"]",
            );
        }
        for (index, upstream) in self.upstreams.iter().enumerate() {
            if upstream.parse::<std::net::SocketAddr>().is_err() {
                found.add(
                    format!("{at}.upstreams[{index}]"),
                    format!("{upstream:?} is not an IP address with a port"),
                    "write it as \"127.0.0.1:3000\"",
                );
            }
        }
        if let Some(path) = &self.health_path {
            if !path.starts_with('/')
                || path.contains(|character: char| character.is_ascii_whitespace() || character.is_control())
            {
                found.add(format!("{at}.health_path"), format!("{path:?} is not a path"), "write it as \"/healthz\"");
            }
        }
        let details = [
            ("health_method", self.health_method.is_some()),
            ("health_status", self.health_status.is_some()),
            ("health_body", self.health_body.is_some()),
        ];
        for (name, given) in details {
            if given && self.health_path.is_none() {
                found.add(
                    format!("{at}.{name}"),
                    format!("{name} means nothing without health_path: a TCP connection has neither"),
                    "add health_path, as in \"/healthz\"",
                );
            }
        }
        if let Some(method) = &self.health_method {
            if method.is_empty() || method.len() > 16 || !method.bytes().all(|byte| byte.is_ascii_uppercase()) {
                found.add(format!("{at}.health_method"), format!("{method:?} is not a method"), "write it as \"HEAD\"");
            } else if method == "HEAD" && self.health_body.is_some() {
                found.add(
                    format!("{at}.health_body"),
                    "health_body is looked for in vain: the answer to HEAD has no body".to_owned(),
                    "remove it, or choose another health_method",
                );
            }
        }
        if let Some((first, last)) = self.health_status {
            if !(100..=599).contains(&first) || !(first..=599).contains(&last) {
                found.add(
                    format!("{at}.health_status"),
                    format!("({first}, {last}) is no range of statuses"),
                    "write the first and the last that pass, as in (200, 299)",
                );
            }
        }
    }

    /// Settings that the host would silently pass over.
    fn check_strays(&self, at: &str, found: &mut Mistakes) {
        let is_child = self.host.is_child();
        let is_local = !matches!(self.host, Host::Http);
        let strays = [
            (
                "adapter",
                self.adapter.is_some(),
                matches!(self.host, Host::Inline | Host::Threads(_)),
                "Inline and Threads",
            ),
            ("command", !self.command.is_empty(), is_child, "Process and Mcp"),
            ("env", !self.env.is_empty(), is_child, "Process and Mcp"),
            ("directory", self.directory.is_some(), is_child, "Process and Mcp"),
            ("limits", self.limits != Limits::default(), is_child, "Process and Mcp"),
            ("hot_reload", self.hot_reload, is_child, "Process and Mcp"),
            ("shed", self.shed.is_some(), self.host.can_be_replaced(), "Threads, Process and Mcp"),
            ("priority", self.priority.is_some(), self.host.can_be_replaced(), "Threads, Process and Mcp"),
            ("value", self.value.is_some(), self.host.can_be_replaced(), "Threads, Process and Mcp"),
            (
                "permissions",
                self.permissions != Permissions::default(),
                matches!(self.host, Host::Process(_)),
                "Process",
            ),
            ("start", self.start != Start::Eager, is_local, "Inline, Threads, Process and Mcp"),
            ("sleep_after_ms", self.sleep_after_ms.is_some(), is_local, "Inline, Threads, Process and Mcp"),
            ("upstreams", !self.upstreams.is_empty(), matches!(self.host, Host::Http), "Http"),
            (
                "balance",
                self.balance == Balance::Weighted,
                matches!(self.host, Host::Http | Host::Process(_)),
                "Http and Process",
            ),
            ("sticky_cookie", self.sticky_cookie.is_some(), matches!(self.host, Host::Http), "Http"),
            ("health_path", self.health_path.is_some(), matches!(self.host, Host::Http), "Http"),
            ("health_method", self.health_method.is_some(), matches!(self.host, Host::Http), "Http"),
            ("health_status", self.health_status.is_some(), matches!(self.host, Host::Http), "Http"),
            ("health_body", self.health_body.is_some(), matches!(self.host, Host::Http), "Http"),
            (
                "in_flight_max",
                self.in_flight_max.is_some(),
                !matches!(self.host, Host::Inline),
                "Threads, Process, Mcp and Http",
            ),
            // One that is given as its default changes nothing and is not told apart from one that is absent.
            ("wedged_ms", self.wedged_ms != Bounded::default(), matches!(self.host, Host::Threads(_)), "Threads"),
        ];
        for (name, given, fits, hosts) in strays {
            if given && !fits {
                found.add(
                    format!("{at}.{name}"),
                    format!("{name} means nothing for host {:?}", self.host),
                    &format!("remove it, or choose one of the hosts it is for: {hosts}"),
                );
            }
        }
    }
}
