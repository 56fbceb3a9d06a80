//! Header lines as the listener keeps them: `Name: value`, each ended by CRLF.

/// Names and values, the values without white space around them. What is no header line is left out.
pub(super) fn lines(bytes: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    bytes.split(|byte| *byte == b'\n').filter_map(|line| {
        let colon = line.iter().position(|byte| *byte == b':')?;
        Some((&line[..colon], line[colon + 1..].trim_ascii()))
    })
}

/// A host without its port.
pub(super) fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        // The colons of an IPv6 address stand in brackets.
        Some((name, port)) if !port.ends_with(']') => name,
        Some(_) | None => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_names_and_values() {
        let found: Vec<_> = lines(b"A: b \r\nC:d:e\r\nnothing\r\nF:\r\n").collect();
        assert_eq!(found, [(&b"A"[..], &b"b"[..]), (b"C", b"d:e"), (b"F", b"")]);
        assert_eq!(lines(b"").count(), 0);
    }

    #[test]
    fn a_port_is_no_part_of_a_host() {
        let hosts = ["a.example:80", "a.example", "[::1]:80", "[::1]", ""];
        assert_eq!(hosts.map(without_port), ["a.example", "a.example", "[::1]", "[::1]", ""]);
    }
}
