//! The configuration: typed, defaults in one place, units in the names.
//!
//! Reading a file (RON, positions of mistakes, nearest names) is the reactor's part; what a value means, which
//! values fit together and what they default to is decided here.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};

mod mistakes;
mod platform;
mod proxy;
mod route;
mod scaler;

use mistakes::Mistakes;

pub use mistakes::{nearest, Mistake};
pub use platform::{Balance, Host, Limits, Permissions, Platform, Plugin, Start};
pub use proxy::{Proxy, PROXY_HEADERS_MAX};
pub use route::{Content, HeaderValue, OnFailure, Route, Urgency, RESERVED_PATHS};
pub use scaler::{Columns, Model, Scaler};

/// Everything a person can set. Every field has a default, so `()` is a valid file.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The listener and the limits of HTTP.
    pub http: Http,
    /// Where what must not be lost is kept.
    pub store: Store,
    /// How instances are probed.
    pub health: Health,
    /// When an instance or platform is cut off, and for how long.
    pub breaker: Breaker,
    /// When an instance is kept from requests because it is far worse than its peers.
    pub outliers: Outliers,
    /// What lies between Demi and what platforms depend on: while it cannot be reached, nobody behind it is blamed.
    pub reachability: Vec<Reachability>,
    /// When an instance that ended is started again.
    pub restart: Restart,
    /// How failed requests are tried again.
    pub retry: Retry,
    /// How messages that were acknowledged are delivered.
    pub posts: Posts,
    /// How RAM is watched and forecast, and what is done when it runs short.
    pub scaler: Scaler,
    /// How Demi ends.
    pub shutdown: Shutdown,
    /// Most requests that may be under way at once in all of Demi; one more is refused with 503.
    pub requests_max: Bounded<1, 1_000_000, 4096>,
    /// Where plugin folders are looked for.
    pub plugins: Plugins,
    /// The integrations, in any order; `needs` decides the order of start. Those of plugin folders come after these.
    pub platforms: Vec<Platform>,
    /// Where a request goes: the first rule that matches.
    pub routes: Vec<Route>,
}

/// A whole number with its range and default in its type: `LOW..=HIGH`, `DEFAULT` when absent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Bounded<const LOW: u64, const HIGH: u64, const DEFAULT: u64>(u64);

impl<const LOW: u64, const HIGH: u64, const DEFAULT: u64> Bounded<LOW, HIGH, DEFAULT> {
    /// The number, if it lies in the range.
    pub const fn new(number: u64) -> Option<Self> {
        if number < LOW || number > HIGH {
            None
        } else {
            Some(Self(number))
        }
    }

    /// The number.
    pub const fn value(self) -> u64 {
        self.0
    }

    /// The number as a size or count.
    pub const fn size(self) -> usize {
        self.0 as usize
    }

    /// The number as a count that fits `u32`; every such bound's `HIGH` does.
    pub const fn count(self) -> u32 {
        self.0 as u32
    }

    /// The number as a span, if its unit is milliseconds.
    pub const fn millis(self) -> Duration {
        Duration::from_millis(self.0)
    }
}

impl<const LOW: u64, const HIGH: u64, const DEFAULT: u64> Default for Bounded<LOW, HIGH, DEFAULT> {
    fn default() -> Self {
        Self(DEFAULT)
    }
}

impl<'de, const LOW: u64, const HIGH: u64, const DEFAULT: u64> Deserialize<'de> for Bounded<LOW, HIGH, DEFAULT> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = u64::deserialize(deserializer)?;
        Self::new(number).ok_or_else(|| serde::de::Error::custom(format!("{number} is outside {LOW} to {HIGH}")))
    }
}

const HOUR_MS: u64 = 3_600_000;

/// The listener and the limits of HTTP.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Http {
    /// Address and port; port 0 takes any free one. Only loopback addresses: there is no authentication yet.
    pub listen: String,
    /// Names under which a reverse proxy passes requests on, without a port; `*` allows every host. Requests for another
    /// host are answered 421, but for `localhost`, what is below it, and loopback addresses, which are always allowed.
    /// Web pages of these hosts may use the API; other pages' requests, unless GET or HEAD, and their streams of events are
    /// answered 403.
    pub hosts: Vec<String>,
    /// Most client connections at once; one more is answered 503 and closed.
    pub connections_max: Bounded<1, 100_000, 2048>,
    /// Most streams of events at once, of the connections; one more is answered 503.
    pub event_streams_max: Bounded<1, 1_024, 64>,
    /// Longest request line plus headers, bytes; a longer head is answered 431.
    pub head_bytes_max: Bounded<256, 65_536, 16_384>,
    /// Most header lines; more are answered 431.
    pub headers_max: Bounded<8, 256, 100>,
    /// Longest request body, bytes; a longer one is answered 413.
    pub body_bytes_max: Bounded<0, 67_108_864, 1_048_576>,
    /// Longest request body that an `Http` platform is sent as it comes, bytes; a longer one is answered 413. 0: no bound.
    pub body_stream_bytes_max: Bounded<0, { 1 << 50 }, { 1 << 30 }>,
    /// Most bytes of request bodies held at once over all connections; beyond it 503.
    pub bodies_bytes_max: Bounded<65_536, 1_073_741_824, 16_777_216>,
    /// A connection without a request is closed after this.
    pub idle_timeout_ms: Bounded<100, HOUR_MS, 60_000>,
    /// A head must be complete this long after its first byte, else 408.
    pub head_timeout_ms: Bounded<100, HOUR_MS, 10_000>,
    /// A body must move forward at least this often, else 408; a client must take bytes this often, else it is closed.
    pub body_timeout_ms: Bounded<100, HOUR_MS, 10_000>,
    /// Idle connections kept to each upstream address.
    pub upstream_idle_max: Bounded<0, 1024, 64>,
    /// A tunnel (an upgrade, such as WebSocket) through which nothing has moved for this long is ended.
    pub tunnel_idle_ms: Bounded<100, { 24 * HOUR_MS }, HOUR_MS>,
    /// A connection to an upstream that nobody has used for this long is closed.
    pub upstream_idle_ms: Bounded<100, HOUR_MS, 30_000>,
}

impl Default for Http {
    fn default() -> Self {
        Http {
            listen: "127.0.0.1:8787".to_owned(),
            hosts: Vec::new(),
            connections_max: Bounded::default(),
            event_streams_max: Bounded::default(),
            head_bytes_max: Bounded::default(),
            headers_max: Bounded::default(),
            body_bytes_max: Bounded::default(),
            body_stream_bytes_max: Bounded::default(),
            bodies_bytes_max: Bounded::default(),
            idle_timeout_ms: Bounded::default(),
            head_timeout_ms: Bounded::default(),
            body_timeout_ms: Bounded::default(),
            upstream_idle_max: Bounded::default(),
            tunnel_idle_ms: Bounded::default(),
            upstream_idle_ms: Bounded::default(),
        }
    }
}

/// Where what must not be lost is kept.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Store {
    /// A directory, made if absent; relative paths start at the configuration file's directory.
    pub path: String,
    /// The database's page cache, bytes.
    pub cache_bytes: Bounded<65_536, 1_073_741_824, 1_048_576>,
    /// Most dead letters kept; at the cap a new one is refused and told loudly, never an old one deleted.
    pub dead_letters_max: Bounded<1, 10_000_000, 10_000>,
    /// When so many bytes were written in a day (UTC), only what must not be lost is written on; 0: no such bound.
    pub bytes_per_day_max: Bounded<0, 1_125_899_906_842_624, 1_073_741_824>,
    /// A dead letter is taken away when it is so old, days, and that is told; 0: never.
    pub dead_letters_days: Bounded<0, 36_500, 30>,
    /// How long it is kept what each platform did in each minute, days; 0: not at all.
    pub metrics_days: Bounded<0, 3650, 30>,
}

impl Default for Store {
    fn default() -> Self {
        Store {
            path: "demi-data".to_owned(),
            cache_bytes: Bounded::default(),
            dead_letters_max: Bounded::default(),
            bytes_per_day_max: Bounded::default(),
            dead_letters_days: Bounded::default(),
            metrics_days: Bounded::default(),
        }
    }
}

/// Declares a section of settings that hold for all platforms, and the same section of one platform, in which a setting
/// that is absent is as for all.
macro_rules! section {
    (
        $(#[$meta:meta])*
        pub struct $name:ident, of one platform $own:ident {
            $($(#[$field_meta:meta])* pub $field:ident: $type:ty,)*
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct $name {
            $($(#[$field_meta])* pub $field: $type,)*
        }

        #[doc = concat!("What of [`", stringify!($name), "`] is otherwise for one platform.")]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct $own {
            $($(#[$field_meta])* #[serde(skip_serializing_if = "Option::is_none")] pub $field: Option<$type>,)*
        }

        impl $own {
            /// What holds for the platform, where this holds for all.
            pub fn over(&self, all: &$name) -> $name {
                $name { $($field: self.$field.unwrap_or(all.$field),)* }
            }
        }
    };
}

section! {
    /// How instances are probed. Defaults as in Kubernetes probes and HAProxy checks, tightened for one machine.
    pub struct Health, of one platform OwnHealth {
        /// Between two probes of an instance.
        pub interval_ms: Bounded<10, HOUR_MS, 5_000>,
        /// A probe without answer after this has failed.
        pub timeout_ms: Bounded<10, HOUR_MS, 5_000>,
        /// A slower answer passes but shows the instance as degraded.
        pub degraded_ms: Bounded<1, HOUR_MS, 200>,
        /// Failures in a row, or answers that it is not ready, that take an instance out of routing.
        pub fall: Bounded<1, 100, 3>,
        /// Failures in a row, never counting answers that it is not ready, after which a thread or process is started
        /// anew; not before `fall`. 0: as many as `fall`.
        pub restart_fall: Bounded<0, 1_000, 0>,
        /// Passes in a row that bring it back.
        pub rise: Bounded<1, 100, 2>,
        /// Between probes while some but not all of `fall` or `rise` have been seen.
        pub doubt_interval_ms: Bounded<10, HOUR_MS, 1_000>,
        /// Between probes of an instance that is out.
        pub down_interval_ms: Bounded<10, HOUR_MS, 10_000>,
        /// An instance that comes back beside others is given requests little by little over this time; 0: at once.
        pub slow_start_ms: Bounded<0, HOUR_MS, 10_000>,
    }
}

/// What is done about an instance whose breaker opens, besides keeping requests away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize)]
pub enum Recovery {
    /// Nothing: probes tell when it is well again.
    #[default]
    Probe,
    /// For `Threads`, `Process` and `Mcp`: it is ended and started again.
    Restart,
    /// For `Inline`, `Threads` and `Process`: it is initialised again; if it cannot be, it is started again.
    Reinitialize,
}

section! {
    /// When an instance, or a platform as a whole, is cut off, and for how long.
    ///
    /// Defaults: failures in a row and waits are the seed's; the rates are those of resilience4j, over less time.
    pub struct Breaker, of one platform OwnBreaker {
        /// Failures in a row that open an instance's breaker.
        pub failures: Bounded<1, 1_000, 3>,
        /// Of requests that ran out of time; 0: as `failures`. Failures of several kinds in a row count each as the part
        /// of its own number that it is.
        pub timeouts: Bounded<0, 1_000_000, 0>,
        /// Of connections that broke, requests that could not be sent, garbage, crashes and panics; 0: as `failures`.
        pub transport_errors: Bounded<0, 1_000_000, 0>,
        /// Of answers that say that the platform failed (5xx); 0: as `failures`.
        pub application_errors: Bounded<0, 1_000_000, 0>,
        /// Failures in a row, over all its instances, that open a platform's breaker; 0: never.
        pub platform_failures: Bounded<0, 1_000_000, 10>,
        /// What rates are taken over: the calls that ended in this time, to a tenth of it.
        pub window_ms: Bounded<100, HOUR_MS, 30_000>,
        /// Fewer calls than this in it have no rate.
        pub calls_min: Bounded<1, 1_000_000, 10>,
        /// Rate of failures, in percent, that opens a breaker; 0: never.
        pub failure_percent: Bounded<0, 100, 50>,
        /// Rate of slow calls, in percent, that opens a breaker; 0: never.
        pub slow_percent: Bounded<0, 100, 50>,
        /// A call that took longer is slow; 0: four fifths of the time that it was given.
        pub slow_ms: Bounded<0, HOUR_MS, 0>,
        /// How long a breaker stays open the first time; doubled at each failed trial.
        pub open_ms: Bounded<10, HOUR_MS, 30_000>,
        /// The longest it stays open.
        pub open_max_ms: Bounded<10, HOUR_MS, 300_000>,
        /// A request that tries a breaker and takes longer is not waited for: the next may try.
        pub trial_ms: Bounded<10, HOUR_MS, 10_000>,
        /// What else is done about an instance whose breaker opens.
        pub recovery: Recovery,
    }
}

section! {
    /// When an instance is kept from requests because it is far worse than the others of its platform. After Envoy's
    /// outlier detection, for few instances: against the others' median and mean, because two or three have no deviation
    /// worth the name.
    pub struct Outliers, of one platform OwnOutliers {
        /// Between two comparisons; 0: none.
        pub interval_ms: Bounded<0, HOUR_MS, 10_000>,
        /// Fewer calls in `breaker.window_ms` say nothing of an instance.
        pub calls_min: Bounded<1, 1_000_000, 20>,
        /// Its usual answer takes this many times the median of the others; 0: never.
        pub latency_times: Bounded<0, 1_000, 4>,
        /// And longer than that by this much.
        pub latency_min_ms: Bounded<0, HOUR_MS, 100>,
        /// Its rate of failures is above the mean of the others by so many points of percent; 0: never.
        pub failure_points: Bounded<0, 100, 30>,
    }
}

/// When an instance that ended is started again: at once, then after `base_ms` doubled up to `max_ms`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Restart {
    /// The wait before the second restart.
    pub base_ms: Bounded<1, HOUR_MS, 1_000>,
    /// The longest wait.
    pub max_ms: Bounded<1, HOUR_MS, 300_000>,
    /// Ready for this long, and earlier restarts are forgotten; 0 forgets at once.
    pub forget_ms: Bounded<0, HOUR_MS, 600_000>,
}

/// How failed requests are tried again; a route decides whether and how often.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Retry {
    /// Longest first wait (full jitter: the wait is drawn from zero to this), doubled at each attempt.
    pub base_ms: Bounded<1, HOUR_MS, 100>,
    /// Longest wait.
    pub max_ms: Bounded<1, HOUR_MS, 20_000>,
    /// Tokens a platform's retries may draw on: 5 a retry, 10 after a timeout, 1 back at each success.
    pub tokens_max: Bounded<0, 1_000_000, 500>,
}

/// How messages that were acknowledged are delivered (`POST /v1/messages`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Posts {
    /// Most messages that wait, over all platforms; one more is refused with 507.
    pub queue_max: Bounded<1, 10_000_000, 100_000>,
    /// How many of the last messages are remembered after their end, for a day at most: what became of them, and their
    /// idempotency keys. Each costs about 80 bytes of memory and 750 of the disk.
    pub remembered_max: Bounded<1_000, 10_000_000, 100_000>,
    /// Most that are on their way to one platform at once.
    pub in_flight_max: Bounded<1, 1024, 8>,
    /// Attempts to deliver one; after that it is a dead letter. What is refused because the platform takes no requests is
    /// no attempt.
    pub attempts_max: Bounded<1, 1_000, 12>,
    /// Longest wait before the second attempt (full jitter: it is drawn from zero to this), doubled at each.
    pub base_ms: Bounded<1, HOUR_MS, 1_000>,
    /// Longest wait.
    pub max_ms: Bounded<1, HOUR_MS, 30_000>,
}

/// Something that platforms depend on and that Demi looks at for itself, to tell "the internet is down" from "the plugin
/// is down". Platforms name it in `behind`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Reachability {
    /// Unique among these; letters, digits, `-` and `_`, at most 64.
    pub name: String,
    /// How it is looked at.
    pub check: Check,
}

/// How it is told whether something can be reached.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub enum Check {
    /// A TCP connection to `address:port` is accepted, or refused: who refuses is there.
    Tcp(String),
    /// The system's resolver finds an address for this name.
    Dns(String),
    /// The router of the default route answers (a TCP connection to its port 53 is accepted or refused).
    Gateway,
    /// An instance of this platform takes requests.
    Platform(String),
}

/// Most entries of `reachability`; all but those of platforms have a thread each.
pub const REACHABILITY_MAX: usize = 16;

/// How Demi ends.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Shutdown {
    /// From the order to stop to the exit, at most.
    pub grace_ms: Bounded<100, HOUR_MS, 10_000>,
}

/// Where plugin folders are looked for.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Plugins {
    /// Directories; each folder in one of them that holds a `plugin.ron` or `plugin.json` is a plugin. Relative paths
    /// start at the configuration file's directory; one that does not exist holds no plugins.
    pub paths: Vec<String>,
    /// Between two looks for folders that came, went or changed; 0 looks at the start only.
    pub rescan_ms: Bounded<0, HOUR_MS, 2_000>,
}

impl Default for Plugins {
    fn default() -> Self {
        Plugins { paths: vec!["plugins".to_owned()], rescan_ms: Bounded::default() }
    }
}

/// Most platforms in one configuration; with `instances` it bounds every table of the conductor.
pub const PLATFORMS_MAX: usize = 4096;
/// Most instances over all platforms.
pub const INSTANCES_MAX: usize = 16_384;
/// Most routes.
pub const ROUTES_MAX: usize = 65_536;
/// Most platforms of a route's `fallback`.
pub const FALLBACKS_MAX: usize = 8;
/// Most routes whose content is a glob or a regular expression, each of which takes some memory.
pub const PATTERNS_MAX: usize = 1024;
/// Most entries of `http.hosts`; a request that names none of the usual hosts is compared with each.
pub const HOSTS_MAX: usize = 64;

impl Config {
    /// Checks what types cannot: references, duplicates, cycles, hosts without what they need. Every mistake, in
    /// the order of the file. `adapters` are the names compiled in.
    pub fn mistakes(&self, adapters: &[&str]) -> Vec<Mistake> {
        let mut found = Mistakes(Vec::new());
        self.check_listen(&mut found);
        self.check_hosts(&mut found);
        self.check_sizes(&mut found);
        let names: Vec<&str> = self.platforms.iter().map(|platform| platform.name.as_str()).collect();
        let mut seen = BTreeSet::new();
        for (index, platform) in self.platforms.iter().enumerate() {
            let at = format!("platforms[{index}]");
            platform.check(&at, adapters, &names, &mut found);
            self.check_own(&at, platform, &mut found);
            if !seen.insert(platform.name.as_str()) {
                found.add(
                    format!("{at}.name"),
                    format!("platform {:?} is named twice", platform.name),
                    "rename one of them",
                );
            }
        }
        if let Err(cycle) = self.start_order() {
            let index = names.iter().position(|name| *name == cycle[0]).unwrap_or(0);
            found.add(
                format!("platforms[{index}].needs"),
                format!("platforms need each other in a circle: {}", cycle.join(" → ")),
                "remove one of these needs",
            );
        }
        self.check_reachability(&names, &mut found);
        for (index, route) in self.routes.iter().enumerate() {
            let at = format!("routes[{index}]");
            route.check(&at, &names, &mut found);
            let to = self.platforms.iter().find(|platform| platform.name == route.to);
            let is_http = to.is_none_or(|platform| platform.host == Host::Http);
            route.proxy.check(&format!("{at}.proxy"), route, is_http, &mut found);
        }
        let is_pattern = |route: &&Route| matches!(route.content, Some(Content::Glob(_) | Content::Regex(_)));
        let patterns = self.routes.iter().filter(is_pattern).count();
        if patterns > PATTERNS_MAX {
            found.add(
                "routes".to_owned(),
                format!("{patterns} rules with Glob or Regex are more than {PATTERNS_MAX}"),
                "join some of them, or use Prefix, Contains or Keywords",
            );
        }
        found.0
    }

    /// What a platform has of its own, together with what holds for all.
    fn check_own(&self, at: &str, platform: &Platform, found: &mut Mistakes) {
        if platform.breaker.open_ms.is_some() || platform.breaker.open_max_ms.is_some() {
            platform.breaker.over(&self.breaker).check(&format!("{at}.breaker"), found);
        }
        let recovery = platform.breaker.recovery.unwrap_or_default();
        let (fits, hosts) = match recovery {
            Recovery::Probe => (true, ""),
            Recovery::Restart => (platform.host.can_be_replaced(), "Threads, Process and Mcp"),
            Recovery::Reinitialize => (platform.host.can_be_initialized_again(), "Inline, Threads and Process"),
        };
        if !fits {
            found.add(
                format!("{at}.breaker.recovery"),
                format!("{recovery:?} cannot be done for host {:?}", platform.host),
                &format!("remove it, or choose one of the hosts it is for: {hosts}"),
            );
        }
        let names: Vec<&str> = self.reachability.iter().map(|entry| entry.name.as_str()).collect();
        for (index, name) in platform.behind.iter().enumerate() {
            let target = self.reachability.iter().find(|entry| entry.name == *name);
            if let Some(Reachability { check: Check::Platform(other), .. }) = target {
                if *other == platform.name || self.depends(other, &platform.name) {
                    found.add(
                        format!("{at}.behind[{index}]"),
                        format!("{name:?} is platform {other:?}, which depends on {:?} itself", platform.name),
                        "remove it: each would wait for the other for ever",
                    );
                }
            }
            if !names.contains(&name.as_str()) {
                found.add_unknown(format!("{at}.behind[{index}]"), "entry of reachability", name, &names);
            }
        }
    }

    /// What a platform depends on: what it needs, and the platforms that it lies behind.
    fn depends_on<'c>(&'c self, platform: &'c Platform) -> impl Iterator<Item = &'c str> {
        let behind = self.reachability.iter().filter(|entry| platform.behind.contains(&entry.name));
        let platforms = behind.filter_map(|entry| match &entry.check {
            Check::Platform(name) => Some(name.as_str()),
            Check::Tcp(_) | Check::Dns(_) | Check::Gateway => None,
        });
        platform.needs.iter().map(String::as_str).chain(platforms)
    }

    /// Whether a platform depends on another, however far.
    fn depends(&self, name: &str, on: &str) -> bool {
        let mut seen = BTreeSet::from([name]);
        let mut open = vec![name];
        while let Some(name) = open.pop() {
            let Some(platform) = self.platforms.iter().find(|platform| platform.name == name) else { continue };
            for next in self.depends_on(platform) {
                if next == on {
                    return true;
                }
                if seen.insert(next) {
                    open.push(next);
                }
            }
        }
        false
    }

    fn check_reachability(&self, platforms: &[&str], found: &mut Mistakes) {
        if self.reachability.len() > REACHABILITY_MAX {
            found.add(
                "reachability".to_owned(),
                format!("{} entries are more than {REACHABILITY_MAX}", self.reachability.len()),
                "leave out those that stand for the same thing",
            );
        }
        let mut seen = BTreeSet::new();
        for (index, entry) in self.reachability.iter().enumerate() {
            let at = format!("reachability[{index}]");
            check_name(&format!("{at}.name"), &entry.name, found);
            if !seen.insert(entry.name.as_str()) {
                found.add(format!("{at}.name"), format!("{:?} is named twice", entry.name), "rename one of them");
            }
            match &entry.check {
                Check::Tcp(address)
                    if !address.parse::<std::net::SocketAddr>().is_ok_and(|address| address.port() > 0) =>
                {
                    found.add(
                        format!("{at}.check"),
                        format!("{address:?} is not an IP address with a port"),
                        "write it as Tcp(\"192.168.1.1:53\")",
                    )
                }
                Check::Dns(name) if !is_host(name) => found.add(
                    format!("{at}.check"),
                    format!("{name:?} is not a host name"),
                    "write it as Dns(\"example.org\")",
                ),
                Check::Platform(name) if !platforms.contains(&name.as_str()) => {
                    found.add_unknown(format!("{at}.check"), "platform", name, platforms);
                }
                Check::Tcp(_) | Check::Dns(_) | Check::Gateway | Check::Platform(_) => {}
            }
        }
    }

    /// Indices of platforms, each after all that it needs; among equals the order of the file. Unknown names are
    /// passed over. On a circle, the names along it, the first repeated at the end.
    pub fn start_order(&self) -> Result<Vec<usize>, Vec<String>> {
        let position = |name: &str| self.platforms.iter().position(|platform| platform.name == name);
        let needs: Vec<Vec<usize>> = self
            .platforms
            .iter()
            .map(|platform| platform.needs.iter().filter_map(|name| position(name)).collect())
            .collect();
        let mut order = Vec::with_capacity(needs.len());
        let mut placed = vec![false; needs.len()];
        while order.len() < needs.len() {
            let before = order.len();
            for index in 0..needs.len() {
                if !placed[index] && needs[index].iter().all(|need| placed[*need]) {
                    placed[index] = true;
                    order.push(index);
                }
            }
            if order.len() == before {
                return Err(self.circle(&needs, &placed));
            }
        }
        Ok(order)
    }

    /// Follows unplaced needs from the first unplaced platform until one repeats: every unplaced one has such a need.
    fn circle(&self, needs: &[Vec<usize>], placed: &[bool]) -> Vec<String> {
        let mut way = vec![placed.iter().position(|done| !done).unwrap_or(0)];
        loop {
            let last = way[way.len() - 1];
            let next = needs[last].iter().copied().find(|need| !placed[*need]).unwrap_or(last);
            if let Some(start) = way.iter().position(|index| *index == next) {
                way.push(next);
                return way[start..].iter().map(|index| self.platforms[*index].name.clone()).collect();
            }
            way.push(next);
        }
    }

    fn check_listen(&self, found: &mut Mistakes) {
        match self.http.listen.parse::<std::net::SocketAddr>() {
            Ok(address) if !address.ip().is_loopback() => found.add(
                "http.listen".to_owned(),
                format!("{address} is reachable from outside and there is no authentication yet"),
                "listen on 127.0.0.1 and put a reverse proxy with authentication before it",
            ),
            Ok(_) => {}
            Err(_) => found.add(
                "http.listen".to_owned(),
                format!("{:?} is not an address with a port", self.http.listen),
                "write it as \"127.0.0.1:8787\"",
            ),
        }
    }

    fn check_hosts(&self, found: &mut Mistakes) {
        if self.http.hosts.len() > HOSTS_MAX {
            found.add(
                "http.hosts".to_owned(),
                format!("{} hosts are more than {HOSTS_MAX}", self.http.hosts.len()),
                "have the reverse proxy pass requests on under fewer names",
            );
        }
        for (index, host) in self.http.hosts.iter().enumerate() {
            if host != "*" && !is_host(host) {
                found.add(
                    format!("http.hosts[{index}]"),
                    format!("{host:?} is not a host"),
                    "write a name or an IP address alone, as in \"demi.example\" or \"[fd00::1]\", or \"*\" for every host",
                );
            }
        }
    }

    fn check_sizes(&self, found: &mut Mistakes) {
        if self.store.path.is_empty() {
            found.add("store.path".to_owned(), "is empty".to_owned(), "name a directory, such as \"demi-data\"");
        }
        if self.platforms.len() > PLATFORMS_MAX {
            found.add(
                "platforms".to_owned(),
                format!("{} platforms are more than {PLATFORMS_MAX}", self.platforms.len()),
                "run a second Demi for the rest",
            );
        }
        let instances: usize = self.platforms.iter().map(Platform::slots).sum();
        if instances > INSTANCES_MAX {
            found.add(
                "platforms".to_owned(),
                format!("{instances} instances over all platforms are more than {INSTANCES_MAX}"),
                "lower the counts of Threads, Process and Mcp",
            );
        }
        if self.routes.len() > ROUTES_MAX {
            found.add(
                "routes".to_owned(),
                format!("{} routes are more than {ROUTES_MAX}", self.routes.len()),
                "join some of them",
            );
        }
        self.breaker.check("breaker", found);
        self.scaler.check(found);
        if self.restart.max_ms.value() < self.restart.base_ms.value() {
            found.add(
                "restart.max_ms".to_owned(),
                "is below restart.base_ms".to_owned(),
                "raise it to base_ms or more",
            );
        }
    }
}

fn check_name(at: &str, name: &str, found: &mut Mistakes) {
    let plain = |character: char| character.is_ascii_alphanumeric() || character == '-' || character == '_';
    if name.is_empty() || name.len() > 64 || !name.chars().all(plain) {
        found.add(at.to_owned(), format!("{name:?} is not a name"), "use 1 to 64 letters, digits, '-' or '_'");
    }
}

impl Breaker {
    fn check(&self, at: &str, found: &mut Mistakes) {
        if self.open_max_ms.value() < self.open_ms.value() {
            found.add(format!("{at}.open_max_ms"), format!("is below {at}.open_ms"), "raise it to open_ms or more");
        }
    }
}

/// Whether this is a host as it stands in a URL, without a port: a name of at most 253 bytes whose labels have 1 to 63
/// (RFC 1035 §2.3.4), perhaps with a dot at the end; an IPv4 address; or an IPv6 address in brackets.
fn is_host(host: &str) -> bool {
    if let Some(literal) = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return literal.parse::<std::net::Ipv6Addr>().is_ok();
    }
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let name = host.strip_suffix('.').unwrap_or(host);
    name.len() <= 253 && name.split('.').all(|label| matches!(label.len(), 1..=63) && label.bytes().all(plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        Config {
            platforms: vec![Platform::new("echo", Host::Inline)],
            routes: vec![Route::to("echo")],
            ..Config::default()
        }
    }

    fn bounded<const LOW: u64, const HIGH: u64, const DEFAULT: u64>(number: u64) -> Bounded<LOW, HIGH, DEFAULT> {
        Bounded::new(number).expect("the number is in its range")
    }

    #[test]
    fn a_sound_configuration_has_no_mistakes() {
        assert_eq!(config().mistakes(&["echo"]), []);
    }

    #[test]
    fn an_unknown_platform_is_told_with_the_nearest_name() {
        let mut config = config();
        config.routes[0].to = "ehco".to_owned();
        let mistakes = config.mistakes(&["echo"]);
        assert_eq!(mistakes.len(), 1);
        assert_eq!(mistakes[0].at, "routes[0].to");
        assert_eq!(mistakes[0].remedy, "did you mean \"echo\"?");
    }

    #[test]
    fn a_circle_of_needs_is_told_along_its_way() {
        let mut config = config();
        for (name, need) in [("a", "b"), ("b", "c"), ("c", "a")] {
            let mut platform = Platform::new(name, Host::Inline);
            platform.adapter = Some("echo".to_owned());
            platform.needs = vec![need.to_owned()];
            config.platforms.push(platform);
        }
        assert_eq!(config.start_order(), Err(["a", "b", "c", "a"].map(str::to_owned).to_vec()));
        assert!(config.mistakes(&["echo"])[0].what.contains("a → b → c → a"));
    }

    #[test]
    fn start_order_puts_needs_first_and_keeps_the_order_of_the_file() {
        let mut config = config();
        let mut needy = Platform::new("needy", Host::Inline);
        needy.needs = vec!["late".to_owned()];
        config.platforms.insert(0, needy);
        config.platforms.push(Platform::new("late", Host::Inline));
        assert_eq!(config.start_order(), Ok(vec![1, 2, 0]));
    }

    #[test]
    fn beyond_loopback_is_refused_while_there_is_no_authentication() {
        let mut config = config();
        config.http.listen = "0.0.0.0:8787".to_owned();
        assert_eq!(config.mistakes(&["echo"])[0].at, "http.listen");
    }

    #[test]
    fn hosts_are_names_or_addresses_alone() {
        let mut config = config();
        config.http.hosts =
            ["demi.example", "Demi_1.Example.", "localhost", "192.168.1.2", "[fd00::1]", "xn--bcher-kva.example", "*"]
                .map(str::to_owned)
                .to_vec();
        assert_eq!(config.mistakes(&["echo"]), []);
        let long = format!("{}a", "a.".repeat(127));
        for wrong in [
            "",
            ".",
            "a..b",
            ".a",
            "a:80",
            "http://a",
            "a/b",
            "me@a",
            "*.a",
            "a b",
            "bücher.example",
            "fd00::1",
            "[fd00::1",
            "[fd00::1]:80",
            "[a]",
            &long,
            &"a".repeat(64),
        ] {
            config.http.hosts = vec!["a".to_owned(), wrong.to_owned()];
            let mistakes = config.mistakes(&["echo"]);
            assert_eq!(mistakes.len(), 1, "{wrong:?}");
            assert_eq!(mistakes[0].at, "http.hosts[1]", "{wrong:?}");
        }
        config.http.hosts = vec!["a".to_owned(); HOSTS_MAX + 1];
        assert_eq!(config.mistakes(&["echo"])[0].at, "http.hosts");
    }

    #[test]
    fn a_route_cannot_take_a_path_of_the_api_but_may_resemble_one() {
        let mut config = config();
        config.routes[0].path = Some("/v1/*".to_owned());
        assert_eq!(config.mistakes(&["echo"]).len(), 1);
        config.routes[0].path = Some("/v10/*".to_owned());
        assert_eq!(config.mistakes(&["echo"]), []);
    }

    #[test]
    fn settings_of_another_host_are_not_passed_over_in_silence() {
        let mut config = config();
        config.platforms[0].command = vec!["true".to_owned()];
        config.platforms[0].upstreams = vec!["127.0.0.1:1".to_owned()];
        let at: Vec<String> = config.mistakes(&["echo"]).into_iter().map(|mistake| mistake.at).collect();
        assert_eq!(at, ["platforms[0].command", "platforms[0].upstreams"]);
        let bounds = |host| {
            let platform = &mut config.platforms[0];
            *platform = Platform::new("echo", host);
            (platform.in_flight_max, platform.wedged_ms) =
                (Bounded::new(1), Bounded::new(100).expect("it is in range"));
            platform.command = if let Host::Process(_) = host { vec!["true".to_owned()] } else { Vec::new() };
            config.mistakes(&["echo"]).into_iter().map(|mistake| mistake.at).collect::<Vec<String>>()
        };
        let found = [Host::Inline, Host::Threads(1), Host::Process(1)].map(bounds);
        let (in_flight, wedged) = ("platforms[0].in_flight_max".to_owned(), "platforms[0].wedged_ms".to_owned());
        assert_eq!(found, [vec![in_flight, wedged.clone()], vec![], vec![wedged]]);
    }

    #[test]
    fn voice_goes_before_android_before_discord_before_the_rest_unless_the_file_says_otherwise() {
        let of = |name: &str| Platform::new(name, Host::Process(1));
        let names = ["Voice-in", "android_sms", "discord", "files"];
        assert_eq!(names.map(|name| of(name).priority()), [100, 200, 300, 400]);
        assert_eq!(Platform { priority: Bounded::new(7), ..of("files") }.priority(), 7);
        assert!(of("files").may_be_shed() && !Platform::new("pool", Host::Threads(2)).may_be_shed());
        assert!(!Platform { shed: Some(false), ..of("files") }.may_be_shed());
        assert!(Platform { shed: Some(true), ..Platform::new("pool", Host::Threads(2)) }.may_be_shed());
    }

    #[test]
    fn thresholds_of_ram_that_contradict_each_other_are_told_with_what_to_do() {
        let mut config = config();
        (config.scaler.restore_percent, config.scaler.shed_percent) = (bounded(80), bounded(80));
        config.scaler.emergency_percent = bounded(80);
        (config.scaler.enabled, config.scaler.forecast_only) = (false, true);
        let at: Vec<String> = config.mistakes(&["echo"]).into_iter().map(|mistake| mistake.at).collect();
        assert_eq!(at, ["scaler.restore_percent", "scaler.emergency_percent", "scaler.forecast_only"]);
        config.scaler = Scaler { fast_interval_ms: bounded(60_000), ..Scaler::default() };
        assert_eq!(config.mistakes(&["echo"])[0].at, "scaler.fast_interval_ms");
    }

    #[test]
    fn nearest_finds_slips_and_leaves_strangers_alone() {
        assert_eq!(nearest("plattforms", &["routes", "platforms"]), Some("platforms"));
        assert_eq!(nearest("xyzzy", &["routes", "platforms"]), None);
    }
}
