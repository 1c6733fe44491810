//! The name that a TLS client asks for, from its first bytes. rustls' own parser reads them; here
//! is how much it is given and for how long. Nothing is answered but an alert: what follows is the container's.

use std::io;

use rustls::server::Acceptor;
use tokio::io::AsyncReadExt;
use tokio::time::timeout;

use super::super::door::HEAD_TIME;
use super::super::stream::Stream;

/// A greeting with post-quantum keys and many extensions has some two thousand bytes.
const MAX_HELLO: usize = 16 * 1024;
const STEP: usize = 2048;

/// What a connection begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Greeting {
    /// Not whole yet.
    Partial,
    /// Asks for this name, in lower case, or for none.
    Hello(Option<String>),
    /// No TLS.
    Alien,
}

fn read(bytes: &[u8]) -> Greeting {
    let mut acceptor = Acceptor::default();
    let mut left = bytes;
    while !left.is_empty() {
        match acceptor.read_tls(&mut left) {
            Ok(0) | Err(_) => return Greeting::Alien,
            Ok(_) => {}
        }
        match acceptor.accept() {
            Ok(Some(accepted)) => {
                let name = accepted
                    .client_hello()
                    .server_name()
                    .map(str::to_ascii_lowercase);
                return Greeting::Hello(name);
            }
            Ok(None) => {}
            Err(_) => return Greeting::Alien,
        }
    }
    if bytes.len() < MAX_HELLO {
        Greeting::Partial
    } else {
        Greeting::Alien
    }
}

/// The name in a whole greeting.
#[cfg(any(test, feature = "fuzz"))]
pub(in super::super) fn asked_for(bytes: &[u8]) -> Option<String> {
    match read(bytes) {
        Greeting::Hello(name) => name,
        Greeting::Partial | Greeting::Alien => None,
    }
}

/// Reads a client's greeting, of which some was `seen` before, and gives back its bytes with the
/// name; none for what asks for none, or is no TLS.
pub(super) async fn of<S: Stream>(
    stream: &mut S,
    mut seen: Vec<u8>,
) -> io::Result<(Vec<u8>, Option<String>)> {
    let reading = async {
        loop {
            match read(&seen) {
                Greeting::Partial => seen.reserve(STEP),
                Greeting::Hello(name) => return Ok(name),
                Greeting::Alien => return Ok(None),
            }
            if stream.read_buf(&mut seen).await? == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
            }
        }
    };
    let name = timeout(HEAD_TIME, reading).await??;
    Ok((seen, name))
}

#[cfg(test)]
pub(in super::super) mod tests {
    use std::sync::Arc;

    use rustls::pki_types::ServerName;
    use rustls::{ClientConfig, ClientConnection, RootCertStore};

    use super::*;

    /// A client's first message to `name`.
    pub(in super::super::super) fn greeting(name: &str) -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn the_name_is_known_as_soon_as_the_greeting_is_whole() {
        let bytes = greeting("DB.Example.com");
        for end in 0..bytes.len() {
            assert_eq!(read(&bytes[..end]), Greeting::Partial, "{end}");
        }
        let name = Some("db.example.com".to_owned());
        assert_eq!(read(&bytes), Greeting::Hello(name));
        assert_eq!(read(&greeting("192.0.2.1")), Greeting::Hello(None));
        for alien in [
            &b"GET / HTTP/1.1\r\n\r\n"[..],
            b"\x15\x03\x01\0\x02\x02\x28",
            &[0; 64],
        ] {
            assert_eq!(read(alien), Greeting::Alien, "{alien:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn nothing_breaks_it(at in 0usize..200, byte: u8, tail: Vec<u8>, cut in 0usize..400) {
            let mut bytes = greeting("db.example.com");
            let at = at % bytes.len();
            bytes[at] = byte;
            bytes.truncate(bytes.len().min(cut));
            bytes.extend(tail);
            if let Greeting::Hello(Some(name)) = read(&bytes) {
                proptest::prop_assert!(name.len() < 256);
            }
        }

        #[test]
        fn no_bytes_break_it(bytes: Vec<u8>) {
            let _ = read(&[&[0x16, 3, 1][..], &bytes].concat());
        }
    }
}
