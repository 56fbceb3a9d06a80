//! Looks whether what platforms depend on can be reached.
//!
//! A look blocks: the system's resolver knows no other way. So each target has a thread with a small stack, which is
//! started at the first look, is asked for one look at a time, and answers through the postbox. One that takes so long
//! that the conductor has given it up is passed over when it comes back at last.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, TcpStream, ToSocketAddrs};
use std::path::Path;
use std::thread;
use std::time::Duration;

use crossbeam_channel::{bounded, Receiver, Sender, TrySendError};
use demi_conductor::config::{Check, Config};
use demi_conductor::Verdict;

use crate::mailbox::{Letter, Postbox};

/// Enough for the system's resolver, whose answers may have 64 KiB; only pages that are touched cost memory.
const STACK_BYTES: usize = 256 * 1024;
/// Where the kernel lists its routes.
const ROUTES: &str = "/proc/net";
/// So much of each list is read; a default route stands among the first lines of it, or soon after.
const ROUTES_BYTES_MAX: u64 = 1024 * 1024;
/// Routers resolve names for their network. One that does not still refuses, which is an answer.
const GATEWAY_PORT: u16 = 53;
/// The route is in use, and leads over a gateway (`RTF_UP`, `RTF_GATEWAY`).
const UP_OVER_GATEWAY: u32 = 0x3;

/// All targets of `reachability`, by index.
pub(crate) struct Lookouts(Vec<Lookout>);

struct Lookout {
    name: String,
    check: Check,
    timeout: Duration,
    /// The number of the look that was asked for last.
    asked: u64,
    /// To its thread, once it has one.
    orders: Option<Sender<u64>>,
}

impl Lookouts {
    pub(crate) fn new(config: &Config) -> Lookouts {
        let lookout = |target: &demi_conductor::config::Reachability| Lookout {
            name: target.name.clone(),
            check: target.check.clone(),
            timeout: config.health.timeout_ms.millis(),
            asked: 0,
            orders: None,
        };
        Lookouts(config.reachability.iter().map(lookout).collect())
    }

    /// Has a thread look at a target; `Letter::Reached` follows. If the one before is not over, and one waits already,
    /// nothing does: the conductor waits no longer than it always does.
    ///
    /// # Errors
    /// If there is no thread to be had.
    pub(crate) fn look(&mut self, target: u32, postbox: &Postbox) -> io::Result<()> {
        let Some(lookout) = self.0.get_mut(target as usize) else { return Ok(()) };
        let next = lookout.asked + 1;
        if let Some(orders) = &lookout.orders {
            match orders.try_send(next) {
                Ok(()) => {
                    lookout.asked = next;
                    return Ok(());
                }
                Err(TrySendError::Full(_)) => {
                    log::debug!("{} (reachability): the last look is not over", lookout.name);
                    return Ok(());
                }
                Err(TrySendError::Disconnected(_)) => log::error!("the thread that looks at {} ended", lookout.name),
            }
        }
        let (orders, inbox) = bounded(1);
        lookout.spawn(target, inbox, postbox.clone())?;
        // It is empty, and its thread waits for it.
        let _ = orders.try_send(next);
        lookout.asked = next;
        lookout.orders = Some(orders);
        Ok(())
    }

    /// Whether this look is the one that was asked for last; one before it says nothing of the target as it is now.
    pub(crate) fn is_awaited(&self, target: u32, look: u64) -> bool {
        self.0.get(target as usize).is_some_and(|lookout| lookout.asked == look)
    }
}

impl Lookout {
    fn spawn(&self, target: u32, inbox: Receiver<u64>, postbox: Postbox) -> io::Result<()> {
        let (check, timeout) = (self.check.clone(), self.timeout);
        let work = move || {
            for look in inbox {
                let verdict = if is_there(&check, timeout, Path::new(ROUTES)) { Verdict::Pass } else { Verdict::Fail };
                postbox.post(Letter::Reached { target, look, verdict });
            }
        };
        thread::Builder::new().name(format!("demi-reach-{target}")).stack_size(STACK_BYTES).spawn(work).map(drop)
    }
}

/// Blocks for the timeout at most; for a name, for as long as the system's resolver does.
fn is_there(check: &Check, timeout: Duration, routes: &Path) -> bool {
    match check {
        Check::Tcp(address) => address.parse().is_ok_and(|address| answers(address, timeout)),
        Check::Dns(name) => (name.as_str(), 0).to_socket_addrs().is_ok_and(|mut found| found.next().is_some()),
        Check::Gateway => gateway_answers(routes, timeout),
        // The conductor sees for itself.
        Check::Platform(_) => false,
    }
}

/// Whether a connection is accepted, or refused: who refuses is there.
fn answers(address: SocketAddr, timeout: Duration) -> bool {
    match TcpStream::connect_timeout(&address, timeout) {
        Ok(_) => true,
        Err(error) => matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset),
    }
}

fn gateway_answers(routes: &Path, timeout: Duration) -> bool {
    let gateways = gateways(routes);
    // All together have the time of one look.
    let each = timeout / gateways.len().max(1) as u32;
    gateways.into_iter().any(|gateway| answers(gateway, each))
}

/// The routers of the default routes, at most one for each version of IP: that of the route with the lowest metric.
/// A default route without one (a tunnel) has nobody who could be asked.
fn gateways(routes: &Path) -> Vec<SocketAddr> {
    let best = |found: Vec<(u32, SocketAddr)>| found.into_iter().min_by_key(|(metric, _)| *metric);
    let four = lines(&routes.join("route")).filter_map(|line| gateway_of(&line)).collect();
    let six = lines(&routes.join("ipv6_route")).filter_map(|line| gateway6_of(&line, routes)).collect();
    [best(four), best(six)].into_iter().flatten().map(|(_, gateway)| gateway).collect()
}

/// The lines of a file; none if it cannot be read, as where the kernel knows no IPv6.
fn lines(path: &Path) -> impl Iterator<Item = String> {
    let file = File::open(path).into_iter();
    file.flat_map(|file| BufReader::new(file.take(ROUTES_BYTES_MAX)).lines().map_while(Result::ok))
}

/// Metric and gateway, if a line of `/proc/net/route` is a default route over one. Addresses are numbers as they lie in
/// memory.
fn gateway_of(line: &str) -> Option<(u32, SocketAddr)> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let [_, destination, gateway, flags, _, _, metric, mask, ..] = fields[..] else { return None };
    let is_default = u32::from_str_radix(destination, 16) == Ok(0) && u32::from_str_radix(mask, 16) == Ok(0);
    if !is_default || !is_up_over_gateway(flags) {
        return None;
    }
    let address = Ipv4Addr::from(u32::from_str_radix(gateway, 16).ok()?.to_ne_bytes());
    Some((metric.parse().ok()?, SocketAddr::new(IpAddr::V4(address), GATEWAY_PORT)))
}

/// As [`gateway_of`], of `/proc/net/ipv6_route`, where all numbers are hexadecimal.
fn gateway6_of(line: &str, routes: &Path) -> Option<(u32, SocketAddr)> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let [destination, length, _, _, gateway, metric, _, _, flags, interface] = fields[..] else { return None };
    let is_default = u128::from_str_radix(destination, 16) == Ok(0) && u32::from_str_radix(length, 16) == Ok(0);
    if !is_default || !is_up_over_gateway(flags) {
        return None;
    }
    let address = Ipv6Addr::from(u128::from_str_radix(gateway, 16).ok()?);
    // An address of the link means something on this interface only.
    let scope = if address.is_unicast_link_local() { number_of(interface, routes)? } else { 0 };
    let gateway = SocketAddr::V6(SocketAddrV6::new(address, GATEWAY_PORT, 0, scope));
    Some((u32::from_str_radix(metric, 16).ok()?, gateway))
}

fn is_up_over_gateway(flags: &str) -> bool {
    u32::from_str_radix(flags, 16).is_ok_and(|flags| flags & UP_OVER_GATEWAY == UP_OVER_GATEWAY)
}

/// The number of an interface, as `/proc/net/if_inet6` says it of each of its addresses.
fn number_of(interface: &str, routes: &Path) -> Option<u32> {
    lines(&routes.join("if_inet6")).find_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let [_, number, _, _, _, name] = fields[..] else { return None };
        if name == interface {
            u32::from_str_radix(number, 16).ok()
        } else {
            None
        }
    })
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Instant;

    use demi_conductor::config::Reachability;
    use mio::{Poll, Token, Waker};

    use super::*;
    use crate::mailbox::{mailbox, Mailbox};

    const PATIENCE: Duration = Duration::from_secs(30);

    /// A directory as the kernel's, removed with the test.
    struct Routes(PathBuf);

    impl Routes {
        fn new(files: &[(&str, &str)]) -> Routes {
            static NEXT: AtomicU32 = AtomicU32::new(0);
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let path = std::env::temp_dir().join(format!("demi-routes-{}-{number}", std::process::id()));
            std::fs::create_dir_all(&path).expect("the temporary directory can be written");
            for (name, text) in files {
                std::fs::write(path.join(name), text).expect("the temporary directory can be written");
            }
            Routes(path)
        }
    }

    impl Drop for Routes {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    /// As recorded, with a second default route that is dearer and a tunnel's that is cheaper and has no gateway.
    #[cfg(target_endian = "little")]
    const ROUTE: &str = "\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
tun0\t00000000\t00000000\t0001\t0\t0\t50\t00000000\t0\t0\t0
wlan0\t00000000\t0101A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0
eth0\t00000000\t010200C0\t0003\t0\t0\t100\t00000000\t0\t0\t0
eth0\t000200C0\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0
eth0\t0000000A\t020200C0\t0003\t0\t0\t0\t000000FF\t0\t0\t0
";
    const IPV6_ROUTE: &str = "\
fe800000000000000000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000002 00000000 00000001     eth0
00000000000000000000000000000000 00 00000000000000000000000000000000 00 fe8000000000000002000000000000a1 00000400 00000002 00000000 00000003     eth0
00000000000000000000000000000001 80 00000000000000000000000000000000 00 00000000000000000000000000000000 00000000 00000002 00000000 80200001       lo
00000000000000000000000000000000 00 00000000000000000000000000000000 00 00000000000000000000000000000000 ffffffff 00000001 00000000 00200200       lo
";
    const IF_INET6: &str = "\
00000000000000000000000000000001 01 80 10 80       lo
fe8000000000000000fc00fffe000001 0c 40 20 80     eth0
";

    #[cfg(target_endian = "little")]
    #[test]
    fn the_gateways_are_those_of_the_default_routes_with_the_lowest_metric() {
        let routes = Routes::new(&[("route", ROUTE), ("ipv6_route", IPV6_ROUTE), ("if_inet6", IF_INET6)]);
        let six = SocketAddrV6::new("fe80::200:0:0:a1".parse().expect("it is an address"), 53, 0, 12);
        let four = "192.0.2.1:53".parse().expect("it is an address");
        assert_eq!(gateways(&routes.0), [four, SocketAddr::V6(six)]);
    }

    #[test]
    fn without_a_default_route_there_is_no_gateway_and_nothing_is_reached() {
        let garbage = "Iface\n\u{fffd} 0\neth0 00000000 xyz 0003 0 0 0 00000000\n";
        let routes = Routes::new(&[("route", garbage), ("ipv6_route", "0 0 0\n")]);
        assert!(gateways(&routes.0).is_empty());
        assert!(!is_there(&Check::Gateway, PATIENCE, &routes.0));
        assert!(!is_there(&Check::Gateway, PATIENCE, Path::new("/nowhere")));
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn a_gateway_that_accepts_or_refuses_is_there() {
        let route = "lo\t00000000\t0100007F\t0003\t0\t0\t0\t00000000\t0\t0\t0\n";
        let routes = Routes::new(&[("route", route)]);
        assert_eq!(gateways(&routes.0), ["127.0.0.1:53".parse().expect("it is an address")]);
        assert!(is_there(&Check::Gateway, PATIENCE, &routes.0));
    }

    #[test]
    fn who_accepts_or_refuses_a_connection_is_there_and_what_no_route_leads_to_is_not() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("there is a free port");
        let check = Check::Tcp(listener.local_addr().expect("it is bound").to_string());
        assert!(is_there(&check, PATIENCE, Path::new(ROUTES)));
        drop(listener);
        assert!(is_there(&check, PATIENCE, Path::new(ROUTES)), "a closed port refuses");
        // No connection can be made to a broadcast address.
        assert!(!is_there(&Check::Tcp("255.255.255.255:53".to_owned()), PATIENCE, Path::new(ROUTES)));
    }

    #[test]
    fn a_name_is_there_if_the_resolver_finds_an_address() {
        assert!(is_there(&Check::Dns("localhost".to_owned()), PATIENCE, Path::new(ROUTES)));
        // A label has 63 bytes at most, so nobody is asked for this one.
        assert!(!is_there(&Check::Dns("x".repeat(64)), PATIENCE, Path::new(ROUTES)));
    }

    fn next(mailbox: &Mailbox) -> (u32, u64, Verdict) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match mailbox.take() {
                Some(Letter::Reached { target, look, verdict }) => return (target, look, verdict),
                Some(_) | None => assert!(Instant::now() < deadline, "no look comes back"),
            }
            thread::park_timeout(Duration::from_millis(1));
        }
    }

    #[test]
    fn each_target_is_looked_at_as_often_as_it_is_asked_and_only_the_last_look_counts() {
        let poll = Poll::new().expect("there is a poll to have");
        let (postbox, mailbox) = mailbox(Waker::new(poll.registry(), Token(0)).expect("it can be woken"));
        let listener = TcpListener::bind("127.0.0.1:0").expect("there is a free port");
        let address = listener.local_addr().expect("it is bound").to_string();
        let target = |name: &str, check| Reachability { name: name.to_owned(), check };
        let reachability =
            vec![target("there", Check::Tcp(address)), target("nowhere", Check::Tcp("255.255.255.255:53".to_owned()))];
        let mut lookouts = Lookouts::new(&Config { reachability, ..Config::default() });
        lookouts.look(0, &postbox).expect("there is a thread");
        assert_eq!(next(&mailbox), (0, 1, Verdict::Pass));
        lookouts.look(1, &postbox).expect("there is a thread");
        assert_eq!(next(&mailbox), (1, 1, Verdict::Fail));
        lookouts.look(0, &postbox).expect("there is a thread");
        assert_eq!(next(&mailbox), (0, 2, Verdict::Pass));
        assert!(lookouts.is_awaited(0, 2) && !lookouts.is_awaited(0, 1) && !lookouts.is_awaited(2, 1));
    }
}
