//! One request and the moment of its first byte.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::answer;

/// Between two tries at a port that nobody listens on yet: short beside what is measured, long
/// enough to leave the CPU to who is starting.
const PACE: Duration = Duration::from_micros(200);
const PATIENCE: Duration = Duration::from_secs(30);
const MOST: usize = 64 << 10;

#[derive(Debug)]
pub struct First {
    /// From `began` to the answer's first byte.
    pub took: Duration,
    pub text: String,
}

impl First {
    pub fn header(&self, name: &str) -> Option<&str> {
        let lines = self.text.lines().take_while(|line| !line.is_empty());
        let mut pairs = lines.filter_map(|line| line.split_once(':'));
        pairs
            .find(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, v)| v.trim())
    }
}

/// Asks until somebody answers, and reads the whole answer, which must be a 200.
pub fn first_byte(door: SocketAddr, host: &str, began: Instant) -> Result<First> {
    let request = format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n");
    let mut stream = loop {
        match TcpStream::connect(door) {
            Ok(stream) => break stream,
            Err(error) => ensure!(began.elapsed() < PATIENCE, "{door}: {error}"),
        }
        std::thread::sleep(PACE);
    };
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(request.as_bytes())?;
    let (mut read, mut took) = (Vec::new(), None);
    loop {
        let mut more = [0; 4096];
        let count = stream.read(&mut more).context("no answer")?;
        ensure!(count > 0 && read.len() < MOST, "no whole answer");
        took.get_or_insert_with(|| began.elapsed());
        read.extend_from_slice(&more[..count]);
        if let Some(answer) = answer::first(&read)? {
            let text = String::from_utf8_lossy(&read).into_owned();
            ensure!(answer.status == 200, "{text}");
            return Ok(First {
                took: took.unwrap_or_default(),
                text,
            });
        }
    }
}
