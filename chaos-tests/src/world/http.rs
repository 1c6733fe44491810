//! A small blocking HTTP client: one request, one connection, with a deadline.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

const CONNECTING: Duration = Duration::from_secs(5);
const MAX_BODY: u64 = 16 << 20;

#[derive(Debug, Clone)]
pub struct Response {
    pub status: u16,
    /// Names in lower case; of repeated ones the last.
    pub headers: BTreeMap<String, String>,
    pub body: String,
    pub took: Duration,
}

impl Response {
    pub fn ok(self) -> Result<Self> {
        ensure!(self.status == 200, "expected 200: {self:?}");
        Ok(self)
    }

    pub fn says(self, text: &str) -> Result<Self> {
        ensure!(
            self.body.contains(text),
            "expected to read `{text}`: {self:?}"
        );
        Ok(self)
    }

    pub fn header(&self, name: &str) -> Result<&str> {
        self.headers
            .get(name)
            .map(String::as_str)
            .with_context(|| format!("no {name}: {self:?}"))
    }
}

#[derive(Debug, Clone)]
pub struct Request<'a> {
    pub method: &'a str,
    pub host: &'a str,
    pub path: &'a str,
    pub body: &'a [u8],
    pub patience: Duration,
}

impl<'a> Request<'a> {
    pub fn get(host: &'a str, path: &'a str) -> Self {
        Self {
            method: "GET",
            host,
            path,
            body: b"",
            patience: Duration::from_secs(40),
        }
    }

    pub fn post(host: &'a str, path: &'a str, body: &'a [u8]) -> Self {
        Self {
            method: "POST",
            body,
            ..Self::get(host, path)
        }
    }

    /// Sends it to `door` and reads the whole answer.
    pub fn send(&self, door: SocketAddr) -> Result<Response> {
        self.exchange(door)
            .with_context(|| format!("{} {} at {door}", self.host, self.path))
    }

    fn exchange(&self, door: SocketAddr) -> Result<Response> {
        let began = Instant::now();
        let mut stream = TcpStream::connect_timeout(&door, CONNECTING)?;
        stream.set_read_timeout(Some(self.patience))?;
        stream.set_write_timeout(Some(self.patience))?;
        let Self {
            method,
            host,
            path,
            body,
            ..
        } = self;
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\
             content-length: {length}\r\n\r\n"
        );
        stream.write_all(&[head.as_bytes(), body].concat())?;
        let mut reader = BufReader::new(stream.take(MAX_BODY));
        let line = read_line(&mut reader)?;
        let status = line.split(' ').nth(1).and_then(|code| code.parse().ok());
        let status = status.with_context(|| format!("not HTTP: `{line}`"))?;
        let mut headers = BTreeMap::new();
        loop {
            let line = read_line(&mut reader)?;
            let Some((name, value)) = line.split_once(':') else {
                break;
            };
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
        let body = read_body(&mut reader, &headers)?;
        let body = String::from_utf8_lossy(&body).into_owned();
        Ok(Response {
            status,
            headers,
            body,
            took: began.elapsed(),
        })
    }
}

fn read_line(reader: &mut impl BufRead) -> Result<String> {
    let mut line = String::new();
    ensure!(
        reader.read_line(&mut line)? > 0,
        "the connection ended early"
    );
    Ok(line.trim_end().to_owned())
}

fn read_body(reader: &mut impl BufRead, headers: &BTreeMap<String, String>) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    if headers
        .get("transfer-encoding")
        .is_some_and(|v| v.contains("chunked"))
    {
        loop {
            let line = read_line(reader)?;
            let size = u64::from_str_radix(line.split(';').next().unwrap_or(""), 16)?;
            let read = reader.by_ref().take(size).read_to_end(&mut body)?;
            ensure!(read as u64 == size, "the body was cut short");
            read_line(reader).ok();
            if size == 0 {
                return Ok(body);
            }
        }
    }
    match headers
        .get("content-length")
        .map(|v| v.parse::<u64>())
        .transpose()?
    {
        Some(length) => {
            let read = reader.by_ref().take(length).read_to_end(&mut body)?;
            ensure!(read as u64 == length, "the body was cut short");
        }
        None => {
            reader.read_to_end(&mut body)?;
        }
    }
    Ok(body)
}
