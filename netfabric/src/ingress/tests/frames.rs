//! HTTP/2 by its bytes, for clients that no library would be: frames written as they come to mind, and
//! read as they are.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::task::JoinSet;
use tokio::time::timeout;

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const ACK: u8 = 1;
pub const END_HEADERS: u8 = 4;

pub const REFUSED_STREAM: u32 = 7;
pub const CALM: u32 = 11;

const PATIENCE: Duration = Duration::from_mins(1);

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The fields of a GET or POST, in HPACK's plainest form.
pub fn fields(method: &str, path: &str) -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    let method = if method == "GET" { 0x82 } else { 0x83 };
    [
        &[method, 0x86, 0x04][..],
        &text(path),
        &[0x01],
        &text("web.edge.test"),
    ]
    .concat()
}

pub fn get(stream: u32, path: &str) -> Vec<u8> {
    let flags = END_HEADERS | END_STREAM;
    frame(HEADERS, flags, stream, &fields("GET", path))
}

pub fn post(stream: u32, path: &str) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &fields("POST", path))
}

pub fn reset(stream: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &8u32.to_be_bytes())
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    /// The code of a GOAWAY or a reset.
    pub fn code(&self) -> u32 {
        let at = if self.kind == GOAWAY { 4 } else { 0 };
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }
}

pub struct Raw {
    write: OwnedWriteHalf,
    frames: UnboundedReceiver<Frame>,
    _reading: JoinSet<()>,
}

impl Raw {
    /// Greets with these settings.
    pub async fn connect(door: SocketAddr, settings: &[(u16, u32)]) -> Self {
        let stream = TcpStream::connect(door).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let (mut read, mut write) = stream.into_split();
        let one = |(id, value): &(u16, u32)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat();
        let settings: Vec<u8> = settings.iter().flat_map(one).collect();
        let greeting = [
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
            frame(SETTINGS, 0, 0, &settings),
        ];
        write.write_all(&greeting.concat()).await.unwrap();
        let (tell, frames) = unbounded_channel();
        let mut reading = JoinSet::new();
        reading.spawn(async move {
            while let Some(frame) = self::read(&mut read).await {
                if tell.send(frame).is_err() {
                    break;
                }
            }
        });
        Self {
            write,
            frames,
            _reading: reading,
        }
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        self.write.write_all(bytes).await.unwrap();
    }

    /// The next frame; `None` when the connection has ended. Nothing is lost when it is not waited for.
    pub async fn next(&mut self) -> Option<Frame> {
        let read = timeout(PATIENCE, self.frames.recv());
        read.await.expect("the door says something, or ends")
    }

    /// Waits until the door has read all so far.
    pub async fn heard(&mut self) -> bool {
        self.send(&frame(PING, 0, 0, b"heard it")).await;
        while let Some(frame) = self.next().await {
            match frame.kind {
                PING if frame.flags == ACK => return true,
                GOAWAY => return false,
                _ => {}
            }
        }
        false
    }

    /// What the door says until the connection ends, as these bytes are sent in rounds. It has to end.
    pub async fn flood(self, rounds: usize, mut bytes: impl FnMut(usize) -> Vec<u8>) -> Vec<Frame> {
        let (mut write, mut frames) = (self.write, self.frames);
        let reading = async {
            let mut said = Vec::new();
            while let Some(frame) = frames.recv().await {
                said.push(frame);
            }
            said
        };
        let writing = async {
            for round in 0..rounds {
                if write.write_all(&bytes(round)).await.is_err() {
                    break;
                }
            }
            write
        };
        let both = timeout(PATIENCE, async { tokio::join!(reading, writing) });
        both.await.expect("the door ends the connection").0
    }
}

async fn read(stream: &mut OwnedReadHalf) -> Option<Frame> {
    let mut head = [0; 9];
    stream.read_exact(&mut head).await.ok()?;
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    let mut payload = vec![0; length as usize];
    stream.read_exact(&mut payload).await.ok()?;
    Some(Frame {
        kind: head[3],
        flags: head[4],
        stream: u32::from_be_bytes([head[5], head[6], head[7], head[8]]),
        payload,
    })
}
