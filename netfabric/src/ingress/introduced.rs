//! The PROXY protocol, versions 1 and 2: a load balancer before this node says whose connection it
//! passes on. Only read where the operator said that every connection begins so: anybody could say
//! anything otherwise. Written, as version 2, to containers whose service asks for it.

use std::net::{IpAddr, SocketAddr};

/// The longest line of version 1, its end included.
const LINE: usize = 107;
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// What stands before the addresses in version 2.
const FIXED: usize = 16;
/// Version 2's for a connection that is nobody's but the sender's own: a probe, say.
pub const OWN: [u8; FIXED] = *b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";
/// Addresses and whatever is told besides, in version 2.
const MAX_REST: usize = 4096;

/// What a connection begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Introduction {
    /// Whose connection it is; `None` when it is the load balancer's own.
    pub(super) client: Option<IpAddr>,
    pub(super) length: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the connection does not begin with the PROXY protocol")]
pub(super) struct Unintroduced;

/// Reads the introduction at the beginning of `bytes`; `None` when it is not whole yet.
pub(super) fn read(bytes: &[u8]) -> Result<Option<Introduction>, Unintroduced> {
    let start = bytes.len().min(SIGNATURE.len());
    if bytes[..start] == SIGNATURE[..start] {
        return version_2(bytes);
    }
    let start = bytes.len().min(PREFIX.len());
    if bytes[..start] == PREFIX.as_bytes()[..start] {
        return version_1(bytes);
    }
    Err(Unintroduced)
}

const PREFIX: &str = "PROXY ";

fn version_1(bytes: &[u8]) -> Result<Option<Introduction>, Unintroduced> {
    let line = &bytes[..bytes.len().min(LINE)];
    let Some(end) = line.windows(2).position(|w| w == b"\r\n") else {
        return if bytes.len() < LINE {
            Ok(None)
        } else {
            Err(Unintroduced)
        };
    };
    let text = std::str::from_utf8(&line[PREFIX.len()..end]).map_err(|_| Unintroduced)?;
    let words: Vec<&str> = text.split(' ').collect();
    let client = match words[..] {
        ["UNKNOWN", ..] => None,
        ["TCP4", from, to, from_port, to_port] => {
            Some(pair(from, to, from_port, to_port).filter(SocketAddr::is_ipv4))
        }
        ["TCP6", from, to, from_port, to_port] => {
            Some(pair(from, to, from_port, to_port).filter(SocketAddr::is_ipv6))
        }
        _ => return Err(Unintroduced),
    };
    let client = match client {
        None => None,
        Some(client) => Some(client.ok_or(Unintroduced)?.ip()),
    };
    Ok(Some(Introduction {
        client,
        length: end + 2,
    }))
}

/// The client, when both ends are what they must be.
fn pair(from: &str, to: &str, from_port: &str, to_port: &str) -> Option<SocketAddr> {
    let (from, to): (IpAddr, IpAddr) = (from.parse().ok()?, to.parse().ok()?);
    let (from_port, _): (u16, u16) = (from_port.parse().ok()?, to_port.parse().ok()?);
    (from.is_ipv4() == to.is_ipv4()).then_some(SocketAddr::new(from, from_port))
}

fn version_2(bytes: &[u8]) -> Result<Option<Introduction>, Unintroduced> {
    let Some((fixed, rest)) = bytes.split_at_checked(FIXED) else {
        return Ok(None);
    };
    let length = usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    if length > MAX_REST {
        return Err(Unintroduced);
    }
    let told = match fixed[12] {
        // LOCAL: a health check, say.
        0x20 => false,
        0x21 => true,
        _ => return Err(Unintroduced),
    };
    let Some(rest) = rest.get(..length) else {
        return Ok(None);
    };
    let client = match fixed[13] >> 4 {
        1 if told => {
            let from: [u8; 4] = address(rest, 12)?;
            Some(IpAddr::from(from))
        }
        2 if told => {
            let from: [u8; 16] = address(rest, 36)?;
            Some(IpAddr::from(from))
        }
        // Unspecified or a socket of a host's own.
        0..=3 => None,
        _ => return Err(Unintroduced),
    };
    Ok(Some(Introduction {
        client,
        length: FIXED + length,
    }))
}

/// The first address of a block that holds two and their ports.
fn address<const N: usize>(rest: &[u8], block: usize) -> Result<[u8; N], Unintroduced> {
    let from = rest.get(..block).and_then(|b| b.first_chunk());
    from.copied().ok_or(Unintroduced)
}

/// Says whose connection follows: `client`'s, to `server`.
pub(super) fn write(client: SocketAddr, server: SocketAddr) -> Vec<u8> {
    let mut addresses = Vec::new();
    // A socket that takes both families shows IPv4 as a part of IPv6.
    let family = match (client.ip().to_canonical(), server.ip().to_canonical()) {
        (IpAddr::V4(client), IpAddr::V4(server)) => {
            addresses.extend(client.octets().into_iter().chain(server.octets()));
            0x11
        }
        (client, server) => {
            addresses.extend(sixteen(client).into_iter().chain(sixteen(server)));
            0x21
        }
    };
    addresses.extend(client.port().to_be_bytes());
    addresses.extend(server.port().to_be_bytes());
    let length = u16::try_from(addresses.len()).unwrap_or(u16::MAX);
    [
        &SIGNATURE[..],
        &[0x21, family],
        &length.to_be_bytes(),
        &addresses,
    ]
    .concat()
}

fn sixteen(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [&SIGNATURE[..], &[command, family], &length, rest].concat()
    }

    #[test]
    fn clients_are_who_the_load_balancer_says() {
        let v4 = [192, 0, 2, 1, 10, 0, 0, 1, 0x1f, 0x90, 0, 80];
        let v6 = [&[0x20, 1, 0x0d, 0xb8][..], &[0; 32]].concat();
        let more = [&v4[..], b"\x03\0\x04abcd"].concat();
        let table: Vec<(Vec<u8>, Option<&str>)> = vec![
            (
                b"PROXY TCP4 192.0.2.1 10.0.0.1 8080 80\r\n".to_vec(),
                Some("192.0.2.1"),
            ),
            (
                b"PROXY TCP6 2001:db8:: ::1 8080 80\r\n".to_vec(),
                Some("2001:db8::"),
            ),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (b"PROXY UNKNOWN what ever it is\r\n".to_vec(), None),
            (second(0x21, 0x11, &v4), Some("192.0.2.1")),
            (second(0x21, 0x21, &v6), Some("2001:db8::")),
            (second(0x21, 0x11, &more), Some("192.0.2.1")),
            (second(0x20, 0x00, &[]), None),
            (second(0x20, 0x11, &v4), None),
            (second(0x21, 0x31, &[0; 216]), None),
        ];
        for (bytes, client) in table {
            let client = client.map(|c| c.parse().unwrap());
            let length = bytes.len();
            let want = Introduction { client, length };
            let all = [&bytes[..], b"GET / HTTP/1.1"].concat();
            assert_eq!(read(&all), Ok(Some(want)), "{bytes:?}");
            for end in 0..length {
                assert_eq!(read(&bytes[..end]), Ok(None), "{end} of {bytes:?}");
            }
        }
    }

    #[test]
    fn what_is_written_is_read_as_meant() {
        let table = [
            ("192.0.2.1:4000", "10.0.0.1:5432", "192.0.2.1"),
            (
                "[::ffff:192.0.2.1]:4000",
                "[::ffff:10.0.0.1]:5432",
                "192.0.2.1",
            ),
            ("[2001:db8::1]:4000", "[2001:db8::2]:5432", "2001:db8::1"),
            ("[2001:db8::1]:4000", "10.0.0.1:5432", "2001:db8::1"),
        ];
        for (client, server, want) in table {
            let bytes = write(client.parse().unwrap(), server.parse().unwrap());
            let client = Some(want.parse().unwrap());
            let length = bytes.len();
            assert_eq!(read(&bytes), Ok(Some(Introduction { client, length })));
            let ports = bytes[length - 4..].to_vec();
            assert_eq!(ports, [0x0f, 0xa0, 0x15, 0x38], "{client:?}");
        }
        let (client, length) = (None, OWN.len());
        assert_eq!(read(&OWN), Ok(Some(Introduction { client, length })));
    }

    #[test]
    fn anything_else_is_refused() {
        let long = format!("PROXY UNKNOWN {}", "x".repeat(LINE));
        let table: Vec<Vec<u8>> = vec![
            b"GET / HTTP/1.1\r\n".to_vec(),
            b"PROXY TCP5 1.1.1.1 1.1.1.1 1 1\r\n".to_vec(),
            b"PROXY TCP4 1.1.1.1 1.1.1.1 1\r\n".to_vec(),
            b"PROXY TCP4 ::1 ::1 1 1\r\n".to_vec(),
            b"PROXY TCP4 1.1.1.1 1.1.1.1 1 65536\r\n".to_vec(),
            b"PROXY TCP4 host 1.1.1.1 1 1\r\n".to_vec(),
            b"PROXY TCP4  1.1.1.1 1.1.1.1 1 1\r\n".to_vec(),
            b"PROXY \xff\r\n".to_vec(),
            long.into_bytes(),
            second(0x11, 0x11, &[0; 12]),
            second(0x22, 0x11, &[0; 12]),
            second(0x21, 0x11, &[0; 11]),
            second(0x21, 0x21, &[0; 35]),
            second(0x21, 0x41, &[0; 12]),
            second(0x21, 0x11, &[0; MAX_REST + 1]),
        ];
        for bytes in table {
            assert_eq!(read(&bytes), Err(Unintroduced), "{bytes:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn nothing_breaks_it(bytes: Vec<u8>, signed: bool) {
            let start: &[u8] = if signed { SIGNATURE } else { b"PROXY " };
            let bytes = [start, &bytes].concat();
            if let Ok(Some(read)) = read(&bytes) {
                assert!(read.length <= bytes.len());
            }
        }
    }
}
