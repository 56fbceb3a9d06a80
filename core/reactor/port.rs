//! Who holds a port that is in use, so that the error can name it.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::Path;

/// A sentence for an address that cannot be listened on.
pub(crate) fn explain(listen: &str, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            let holder = listen.parse().ok().and_then(|address| holder(Path::new("/proc"), address));
            let by =
                holder.map_or_else(|| "another process".to_owned(), |(pid, name)| format!("process {pid} ({name})"));
            format!("{listen} is in use by {by}; stop it or set http.listen to another port")
        }
        io::ErrorKind::PermissionDenied => {
            format!("{listen} may not be listened on by this user; set http.listen to a port of 1024 or more")
        }
        io::ErrorKind::AddrNotAvailable => {
            format!("{listen} is no address of this machine; set http.listen to one that is, such as 127.0.0.1:8787")
        }
        _ => format!("{listen} cannot be listened on: {error}; set http.listen to another address"),
    }
}

/// Process number and name of whoever listens on the port, as far as /proc lets us see.
fn holder(proc: &Path, address: SocketAddr) -> Option<(u32, String)> {
    let inode = listening_inode(proc, address.port())?;
    let wanted = format!("socket:[{inode}]");
    let processes = fs::read_dir(proc).ok()?.flatten();
    let numbered = processes.filter_map(|entry| Some((entry.file_name().to_str()?.parse::<u32>().ok()?, entry.path())));
    for (pid, path) in numbered {
        let Ok(descriptors) = fs::read_dir(path.join("fd")) else { continue };
        let holds = |link: std::path::PathBuf| link.to_str() == Some(&wanted);
        if descriptors.flatten().any(|entry| fs::read_link(entry.path()).is_ok_and(holds)) {
            let name = fs::read_to_string(path.join("comm")).unwrap_or_default();
            return Some((pid, name.trim().to_owned()));
        }
    }
    None
}

/// The inode of the socket that listens on the port: /proc/net/tcp, state 0A, the tenth column.
fn listening_inode(proc: &Path, port: u16) -> Option<u64> {
    let wanted = format!("{port:04X}");
    ["net/tcp", "net/tcp6"].iter().find_map(|table| {
        let table = fs::read_to_string(proc.join(table)).ok()?;
        table.lines().skip(1).find_map(|line| {
            let columns: Vec<&str> = line.split_whitespace().collect();
            let (_, local_port) = columns.get(1)?.rsplit_once(':')?;
            (local_port == wanted && *columns.get(3)? == "0A").then(|| columns.get(9)?.parse().ok())?
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_of_a_port_is_named() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("there is a free port");
        let address = socket.local_addr().expect("it is bound");
        let (pid, _) = holder(Path::new("/proc"), address).expect("this process holds it");
        assert_eq!(pid, std::process::id());
        let error = std::net::TcpListener::bind(address).expect_err("it is in use");
        assert!(explain(&address.to_string(), &error).contains(&format!("process {pid} (")));
    }
}
