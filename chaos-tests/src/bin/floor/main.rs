//! The floors of benchmarks: the least that any system must do, with nothing around it. `floor
//! serve PORT` is the backend behind proxies; `floor start ROOT WORK PROGRAM…` is a container
//! without a runtime, `floor many COUNT ROOT WORK PROGRAM…` is many; `floor quic-send` and `quic-take` are
//! one stream of QUIC.

mod quic;
mod serve;
mod start;

use anyhow::{Result, bail};

fn main() -> Result<()> {
    let words: Vec<_> = std::env::args().skip(1).collect();
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    match words[..] {
        // As an image's entrypoint it has no words.
        [] => serve::serve(8080),
        ["serve", port] => serve::serve(port.parse()?),
        ["start", root, work, ref program @ ..] => start::one(root, work, program),
        ["many", count, root, work, ref program @ ..] => start::many(count, root, work, program),
        ["quic-send", port, bytes, cert] => {
            quic::ciphers()?;
            quic::send(port.parse()?, bytes.parse()?, cert.as_ref())
        }
        ["quic-take", address, cert] => {
            quic::ciphers()?;
            quic::take(address.parse()?, cert.as_ref())
        }
        _ => bail!(
            "floor serve PORT | start|many [COUNT] ROOT WORK PROGRAM... | quic-send PORT BYTES CERT | quic-take ADDRESS CERT"
        ),
    }
}
