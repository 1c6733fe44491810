//! `cp`: files between this machine and an instance, as a tar in frames. The instance's side is packed
//! and unpacked by its node; ours here.

mod tarball;

use std::io::{self, Read, Write};
use std::path::PathBuf;

use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use netfabric::wire::touch::{self, CHUNK, CopyRequest, FrameKind, Way};
use tokio::io::{AsyncWrite, ReadHalf};
use tokio::sync::mpsc;

use super::exec::{last_word, read_stdin};
use crate::args::{CpArgs, Place};
use crate::failure::{Exit, Failure};
use crate::printer;
use crate::session::Session;

/// Chunks of a tar on their way between the disk and the connection.
const CHUNKS_WAITING: usize = 8;
/// So much of what the node says about files is kept.
const MAX_NOTES: usize = 16 << 10;

pub async fn run(args: CpArgs, session: &Session) -> anyhow::Result<()> {
    let CpArgs { from, to, user } = args;
    match (from, to) {
        (Place::There { name, path }, to @ (Place::Here(_) | Place::Stream)) => {
            let way = Way::Out;
            let request = CopyRequest { path, way, user };
            out(session, &name, &request, to).await
        }
        (from @ (Place::Here(_) | Place::Stream), Place::There { name, path }) => {
            let way = match from {
                Place::Stream => Way::InAsIs,
                _ => Way::In,
            };
            let request = CopyRequest { path, way, user };
            into(session, &name, &request, from).await
        }
        (Place::There { .. }, Place::There { .. }) => {
            Err(Failure::usage("both sides are in instances")
                .hint("selvedge cp A:/file - | selvedge cp - B:/folder")
                .into())
        }
        _ => Err(Failure::usage("neither side is in an instance")
            .hint("write NAME:/PATH for a file in an instance")
            .into()),
    }
}

async fn out(
    session: &Session,
    name: &str,
    request: &CopyRequest,
    to: Place,
) -> anyhow::Result<()> {
    let (sender, chunks) = mpsc::channel(CHUNKS_WAITING);
    let instance = session.instance_of(name).await?;
    let connection = session.touch(&instance, "copy", request).await?;
    let write = tokio::task::spawn_blocking(move || -> anyhow::Result<Vec<String>> {
        let mut chunks = Chunks::new(chunks);
        if let Place::Here(path) = to {
            return tarball::unpack(chunks, &path).map_err(failed);
        }
        io::copy(&mut chunks, &mut io::stdout().lock())?;
        Ok(Vec::new())
    });
    let (from, _to) = tokio::io::split(TokioIo::new(connection));
    let heard = hear(from, Some(sender)).await;
    // Its own failure says more than that nobody took the rest.
    let left_out = write.await??;
    heard?;
    for note in &left_out {
        session.out.hint(note);
    }
    Ok(())
}

async fn into(
    session: &Session,
    name: &str,
    request: &CopyRequest,
    from: Place,
) -> anyhow::Result<()> {
    let chunks = match from {
        Place::Here(path) => packed(path)?,
        _ => Packed {
            chunks: read_stdin(),
            packing: None,
        },
    };
    let instance = session.instance_of(name).await?;
    let connection = session.touch(&instance, "copy", request).await?;
    let (from, to) = tokio::io::split(TokioIo::new(connection));
    let mut hearing = std::pin::pin!(hear(from, None));
    let heard = tokio::select! {
        heard = &mut hearing => heard,
        sent = send(to, chunks) => {
            // When the node took no more, it says why.
            let heard = hearing.await;
            if heard.is_ok() {
                sent?;
            }
            heard
        }
    };
    heard.map_err(Into::into)
}

fn failed(message: String) -> anyhow::Error {
    Failure::new(Exit::Failed, message).into()
}

/// A tar that is being made.
struct Packed {
    chunks: mpsc::Receiver<Vec<u8>>,
    packing: Option<tokio::task::JoinHandle<io::Result<()>>>,
}

fn packed(path: PathBuf) -> anyhow::Result<Packed> {
    let named = path.display().to_string();
    let top = tarball::top(&path).map_err(|e| failed(format!("{named}: {e}")))?;
    let (sender, chunks) = mpsc::channel(CHUNKS_WAITING);
    let packing =
        tokio::task::spawn_blocking(move || tarball::pack(&path, &top, ChunkWriter(sender)));
    Ok(Packed {
        chunks,
        packing: Some(packing),
    })
}

/// Sends the tar. A file here that cannot be read breaks the connection off, so that the other side
/// does not take the half for the whole.
async fn send(
    mut to: impl AsyncWrite + Unpin,
    Packed {
        mut chunks,
        packing,
    }: Packed,
) -> anyhow::Result<()> {
    while let Some(chunk) = chunks.recv().await {
        touch::write(&mut to, FrameKind::Stdin, &chunk).await?;
    }
    if let Some(packing) = packing {
        packing.await?.map_err(|e| failed(e.to_string()))?;
    }
    touch::write(&mut to, FrameKind::Eof, b"").await?;
    Ok(())
}

/// The node's frames to their end: a tar for `to`, notes, how it went.
async fn hear(
    mut from: ReadHalf<TokioIo<Upgraded>>,
    mut to: Option<mpsc::Sender<Vec<u8>>>,
) -> Result<(), Failure> {
    let broken = |why: &dyn std::fmt::Display| {
        Failure::new(Exit::Unavailable, format!("the copy broke off: {why}"))
    };
    let mut notes = Vec::new();
    while let Some(frame) = touch::read(&mut from).await.map_err(|e| broken(&e))? {
        match (frame.kind, &to) {
            (FrameKind::Stdout, Some(sender)) => {
                if sender.send(frame.bytes).await.is_err() {
                    // Nobody takes the rest; why is told by who took the first.
                    to = None;
                }
            }
            (FrameKind::Stdout, None) => {}
            (FrameKind::Stderr, _) => {
                let room = MAX_NOTES.saturating_sub(notes.len()).min(frame.bytes.len());
                notes.extend_from_slice(&frame.bytes[..room]);
            }
            (kind, _) => {
                let said = String::from_utf8_lossy(&notes).trim().to_owned();
                return match last_word(kind, &frame.bytes)? {
                    0 if said.is_empty() => Ok(()),
                    0 => printer::raw_err(format!("{said}\n").as_bytes()).map_err(|e| broken(&e)),
                    code if said.is_empty() => Err(broken(&format!("it ended with {code}"))),
                    _ => Err(Failure::new(Exit::Failed, said)),
                };
            }
        }
    }
    Err(broken(&"the node said no more"))
}

/// A tar's chunks as something to read.
struct Chunks {
    chunks: mpsc::Receiver<Vec<u8>>,
    rest: io::Cursor<Vec<u8>>,
}

impl Chunks {
    fn new(chunks: mpsc::Receiver<Vec<u8>>) -> Self {
        let rest = io::Cursor::default();
        Self { chunks, rest }
    }
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.rest.read(buffer)? {
                0 => match self.chunks.blocking_recv() {
                    Some(chunk) => self.rest = io::Cursor::new(chunk),
                    None => return Ok(0),
                },
                count => return Ok(count),
            }
        }
    }
}

struct ChunkWriter(mpsc::Sender<Vec<u8>>);

impl Write for ChunkWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(CHUNK);
        let sent = self.0.blocking_send(bytes[..count].to_vec());
        sent.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
