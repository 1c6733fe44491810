//! `exec`: a program in an instance, with this command's streams or its terminal. Ends with the
//! program's exit code; 125 is a failure of ours, as docker has it.

use std::io::{self, IsTerminal, Read};
use std::process::ExitCode;

use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use netfabric::wire::touch::{self, CHUNK, ExecRequest, FrameKind, Size};
use tokio::io::{AsyncWrite, ReadHalf};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use crate::args::ExecArgs;
use crate::failure::{Exit, Failure};
use crate::printer;
use crate::session::Session;

/// When the program's own code is not to be had.
const OURS: u8 = 125;
/// What was typed or piped in and not sent yet.
const CHUNKS_WAITING: usize = 4;

type Connection = TokioIo<Upgraded>;

pub async fn run(args: ExecArgs, session: &Session) -> anyhow::Result<ExitCode> {
    match exec(args, session).await {
        Ok(code) => Ok(ExitCode::from(code)),
        // Whoever read our output has seen enough.
        Err(error) if error.downcast_ref::<io::Error>().is_some() => Err(error),
        Err(error) => {
            printer::failure(&Failure::from_error(error));
            Ok(ExitCode::from(OURS))
        }
    }
}

async fn exec(args: ExecArgs, session: &Session) -> anyhow::Result<u8> {
    if args.tty && !io::stdin().is_terminal() {
        return Err(Failure::usage("stdin is no terminal")
            .hint("leave out -t, or run it in a terminal")
            .into());
    }
    let instance = session.instance_of(&args.name).await?;
    let request = ExecRequest {
        args: args.command,
        env: args.env,
        cwd: args.workdir,
        user: args.user,
        tty: args.tty.then(terminal_size),
        stdin: args.stdin,
    };
    let connection = session.touch(&instance, "exec", &request).await?;
    let _raw = if args.tty { Some(Raw::enter()?) } else { None };
    let (from, to) = tokio::io::split(TokioIo::new(connection));
    let mut ends = Ends::new()?;
    tokio::select! {
        code = output(from) => code,
        // Comes back only with a failure to send; the node's last frames say more.
        sent = input(to, args.stdin, args.tty) => match sent {
            Ok(never) => match never {},
            Err(error) => Err(broken(&error).into()),
        },
        code = ends.next() => Ok(code),
    }
}

fn broken(error: &dyn std::fmt::Display) -> Failure {
    Failure::new(
        Exit::Unavailable,
        format!("the connection broke off: {error}"),
    )
}

/// What the program writes, until its exit.
async fn output(mut from: ReadHalf<Connection>) -> anyhow::Result<u8> {
    while let Some(frame) = touch::read(&mut from).await.map_err(|e| broken(&e))? {
        match frame.kind {
            FrameKind::Stdout => printer::raw_out(&frame.bytes)?,
            FrameKind::Stderr => printer::raw_err(&frame.bytes)?,
            kind => return last_word(kind, &frame.bytes).map_err(Into::into),
        }
    }
    Err(broken(&"the node said no more").into())
}

/// The exit code in a session's last frame, or the failure.
pub(super) fn last_word(kind: FrameKind, bytes: &[u8]) -> Result<u8, Failure> {
    match (kind, bytes.first_chunk()) {
        // Beyond a byte nobody can be told.
        (FrameKind::Exit, Some(code)) => {
            Ok(u8::try_from(i32::from_be_bytes(*code)).unwrap_or(u8::MAX))
        }
        (FrameKind::Error, _) => {
            match serde_json::from_slice::<netfabric::wire::api::ApiError>(bytes) {
                Ok(error) => Err(error.into()),
                Err(error) => Err(broken(&error)),
            }
        }
        _ => Err(broken(
            &"the node sent what this command does not understand",
        )),
    }
}

/// Sends stdin and the terminal's size as they come. Never done: the program says when it is over.
async fn input(
    mut to: impl AsyncWrite + Unpin,
    stdin: bool,
    tty: bool,
) -> anyhow::Result<std::convert::Infallible> {
    let mut chunks = stdin.then(read_stdin);
    let mut resized = signal(SignalKind::window_change())?;
    loop {
        let next = async {
            match &mut chunks {
                Some(chunks) => chunks.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            chunk = next => if let Some(bytes) = chunk {
                touch::write(&mut to, FrameKind::Stdin, &bytes).await?;
            } else {
                chunks = None;
                touch::write(&mut to, FrameKind::Eof, b"").await?;
            },
            Some(()) = resized.recv(), if tty => {
                touch::write(&mut to, FrameKind::Resize, &terminal_size().to_bytes()).await?;
            }
        }
    }
}

/// A thread of its own, left behind at the end: a read of a terminal cannot be broken off.
pub(super) fn read_stdin() -> mpsc::Receiver<Vec<u8>> {
    let (sender, chunks) = mpsc::channel(CHUNKS_WAITING);
    std::thread::spawn(move || {
        let mut chunk = vec![0; CHUNK];
        while let Ok(count @ 1..) = io::stdin().lock().read(&mut chunk) {
            if sender.blocking_send(chunk[..count].to_vec()).is_err() {
                return;
            }
        }
    });
    chunks
}

fn terminal_size() -> Size {
    let (columns, rows) = crossterm::terminal::size().unwrap_or((80, 24));
    Size { columns, rows }
}

/// The terminal passes every key on. Dropping it gives the terminal back as it was.
struct Raw;

impl Raw {
    fn enter() -> anyhow::Result<Self> {
        crossterm::terminal::enable_raw_mode()
            .map_err(|e| Failure::new(Exit::Failed, format!("the terminal: {e}")))?;
        Ok(Self)
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // Nobody is left to tell when the terminal is gone.
        let _ = crossterm::terminal::disable_raw_mode();
    }
}

/// Signals that end us, so that the terminal is given back first.
struct Ends {
    terminate: Signal,
    hangup: Signal,
}

impl Ends {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// The exit code of one who was ended so.
    async fn next(&mut self) -> u8 {
        tokio::select! {
            _ = self.terminate.recv() => 128 + 15,
            _ = self.hangup.recv() => 128 + 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_frame_is_a_code_or_a_failure() {
        let code = |n: i32| last_word(FrameKind::Exit, &n.to_be_bytes());
        assert_eq!(code(7).unwrap(), 7);
        assert_eq!(code(137).unwrap(), 137);
        assert_eq!(code(-1).unwrap(), 255);
        let error = br#"{"code":"conflict","message":"gone"}"#;
        let failure = last_word(FrameKind::Error, error).unwrap_err();
        assert_eq!(
            (failure.exit, failure.message.as_str()),
            (Exit::Conflict, "gone")
        );
        assert!(last_word(FrameKind::Exit, b"").is_err());
        assert!(last_word(FrameKind::Resize, b"1234").is_err());
    }
}
