//! One program and one connection: frames from the operator become its input, its output becomes
//! frames. Nothing is queued: who does not read is waited for.

use std::io;
use std::pin::pin;
use std::time::Duration;

use netfabric::wire::api::{ApiError, ErrorCode};
use netfabric::wire::frame::FrameError;
use netfabric::wire::touch::{self, CHUNK, FrameKind, Size};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, WriteHalf};
use tokio::sync::{Mutex, watch};
use tokio::time::timeout;

use super::Connection;
use crate::runtime::exec::{LAST_WORDS, Terminal};
use crate::runtime::{Exec, FailCode, Failure};

/// How long an operator who was told the end may take to go.
const FAREWELL: Duration = Duration::from_secs(5);

type Sink<C> = Mutex<WriteHalf<C>>;
type Input = Option<Box<dyn AsyncWrite + Send + Unpin>>;

/// Serves until the program has ended, or the operator has gone; then the program is hung up on.
pub(super) async fn serve(connection: impl Connection, exec: Exec) -> io::Result<()> {
    let Exec {
        stdin,
        stdout,
        stderr,
        terminal,
        ended,
    } = exec;
    let (mut from, to) = tokio::io::split(connection);
    let to = Mutex::new(to);
    let (over, is_over) = watch::channel(false);
    let outputs = async {
        let stderr = stderr.unwrap_or_else(|| Box::new(tokio::io::empty()));
        tokio::try_join!(
            output(stdout, FrameKind::Stdout, &to, is_over.clone()),
            output(stderr, FrameKind::Stderr, &to, is_over.clone()),
        )
    };
    let mut outputs = pin!(outputs);
    let mut input = pin!(input(&mut from, stdin, terminal));
    let mut ended = pin!(ended);
    let mut written = false;
    let code = loop {
        tokio::select! {
            code = &mut ended => break code,
            done = &mut outputs, if !written => {
                done.map_err(io::Error::other)?;
                written = true;
            }
            // Ends only with the operator's end.
            gone = &mut input => return gone.map_err(io::Error::other),
        }
    };
    over.send_replace(true);
    if !written {
        tokio::select! {
            done = &mut outputs => drop(done.map_err(io::Error::other)?),
            gone = &mut input => return gone.map_err(io::Error::other),
        }
    }
    let told = match code {
        Ok(code) => end(&to, FrameKind::Exit, &code.to_be_bytes()).await,
        Err(error) => {
            let error = ApiError::new(ErrorCode::Internal, error.to_string());
            let bytes = serde_json::to_vec(&error).unwrap_or_default();
            end(&to, FrameKind::Error, &bytes).await
        }
    };
    // Closed with something unread, the connection would break and take our last words along.
    let _ = timeout(FAREWELL, input).await;
    told.map_err(io::Error::other)
}

/// Tells that there is no such program, as a shell would.
pub(super) async fn missing(connection: impl Connection, failure: &Failure) -> io::Result<()> {
    let (mut from, to) = tokio::io::split(connection);
    let to = Mutex::new(to);
    let code: i32 = if failure.code == FailCode::CommandNotFound {
        127
    } else {
        126
    };
    let said = format!("selvedge: {}\r\n", failure.message);
    let told = async {
        touch::write(&mut *to.lock().await, FrameKind::Stderr, said.as_bytes()).await?;
        end(&to, FrameKind::Exit, &code.to_be_bytes()).await
    };
    let told = told.await;
    let _ = timeout(FAREWELL, tokio::io::copy(&mut from, &mut tokio::io::sink())).await;
    told.map_err(io::Error::other)
}

async fn end<C: Connection>(to: &Sink<C>, kind: FrameKind, bytes: &[u8]) -> Result<(), FrameError> {
    let mut to = to.lock().await;
    touch::write(&mut *to, kind, bytes).await?;
    Ok(to.shutdown().await?)
}

/// One stream of the program into frames. After the program's end, silence is the end too: what it
/// started may hold the stream open for ever.
async fn output<C: Connection>(
    mut from: impl AsyncRead + Unpin,
    kind: FrameKind,
    to: &Sink<C>,
    mut over: watch::Receiver<bool>,
) -> Result<(), FrameError> {
    let mut chunk = vec![0; CHUNK];
    loop {
        let silence = async {
            // Never fails: the sender outlives the outputs.
            let _ = over.wait_for(|over| *over).await;
            tokio::time::sleep(LAST_WORDS).await;
        };
        let count = tokio::select! {
            biased;
            read = from.read(&mut chunk) => read?,
            () = silence => 0,
        };
        if count == 0 {
            return Ok(());
        }
        touch::write(&mut *to.lock().await, kind, &chunk[..count]).await?;
    }
}

/// The operator's frames into the program. Returns when the operator has gone.
async fn input(
    from: &mut (impl AsyncRead + Unpin),
    mut stdin: Input,
    terminal: Option<Terminal>,
) -> Result<(), FrameError> {
    while let Some(frame) = touch::read(from).await? {
        match (frame.kind, &mut stdin, &terminal) {
            (FrameKind::Stdin, Some(to), _) => {
                // A program that has closed its input, or ended, wants no more of it.
                if to.write_all(&frame.bytes).await.is_err() {
                    stdin = None;
                }
            }
            (FrameKind::Eof, _, None) => stdin = None,
            (FrameKind::Resize, _, Some(terminal)) => {
                if let Some(size) = Size::from_bytes(&frame.bytes) {
                    // Gone with its program, whose end comes next.
                    let _ = terminal.resize(size);
                }
            }
            // A closed input takes nothing; a terminal has no end of input but the key for it; pipes
            // have no size.
            (FrameKind::Stdin | FrameKind::Eof | FrameKind::Resize, ..) => {}
            (kind, ..) => {
                let wrong = format!("an operator sends no {kind:?} frame");
                return Err(io::Error::new(io::ErrorKind::InvalidData, wrong).into());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use tokio::io::duplex;
    use tokio::sync::oneshot;

    use super::*;

    /// A program of pipes: its ends, and what ends it.
    struct Rig {
        exec: Exec,
        stdin: tokio::io::DuplexStream,
        stdout: tokio::io::DuplexStream,
        end: oneshot::Sender<i32>,
    }

    fn rig() -> Rig {
        let (to_program, stdin) = duplex(64);
        let (stdout, from_program) = duplex(64);
        let (end, ended) = oneshot::channel();
        let exec = Exec {
            stdin: Some(Box::new(to_program)),
            stdout: Box::new(from_program),
            stderr: None,
            terminal: None,
            ended: async move { Ok(ended.await.unwrap_or(255)) }.boxed(),
        };
        Rig {
            exec,
            stdin,
            stdout,
            end,
        }
    }

    #[tokio::test]
    async fn a_programs_last_words_come_before_its_exit() {
        let Rig {
            exec,
            mut stdin,
            mut stdout,
            end,
        } = rig();
        let (mut operator, connection) = duplex(1 << 16);
        let session = tokio::spawn(serve(connection, exec));
        touch::write(&mut operator, FrameKind::Stdin, b"hello")
            .await
            .unwrap();
        touch::write(&mut operator, FrameKind::Eof, b"")
            .await
            .unwrap();
        let mut heard = String::new();
        stdin.read_to_string(&mut heard).await.unwrap();
        assert_eq!(heard, "hello");
        // It has ended, but something it started holds its output open.
        stdout.write_all(&[b'x'; 60]).await.unwrap();
        end.send(3).unwrap();
        let frame = touch::read(&mut operator).await.unwrap().unwrap();
        assert_eq!((frame.kind, frame.bytes.len()), (FrameKind::Stdout, 60));
        let frame = touch::read(&mut operator).await.unwrap().unwrap();
        assert_eq!(frame.kind, FrameKind::Exit);
        assert_eq!(frame.bytes, 3_i32.to_be_bytes());
        assert_eq!(touch::read(&mut operator).await.unwrap(), None);
        drop(operator);
        session.await.unwrap().unwrap();
        drop(stdout);
    }

    #[tokio::test]
    async fn an_operator_who_goes_hangs_up() {
        let Rig { exec, end, .. } = rig();
        let (operator, connection) = duplex(64);
        let session = tokio::spawn(serve(connection, exec));
        drop(operator);
        session.await.unwrap().unwrap();
        assert!(end.is_closed(), "nobody waits for the program any more");
    }

    #[tokio::test]
    async fn an_operator_who_does_not_read_is_waited_for() {
        let Rig {
            exec,
            mut stdout,
            end,
            ..
        } = rig();
        let (mut operator, connection) = duplex(16);
        let session = tokio::spawn(serve(connection, exec));
        let flood = tokio::spawn(async move {
            for _ in 0..1000 {
                stdout.write_all(&[7; 100]).await.unwrap();
            }
            end.send(0).unwrap();
        });
        tokio::time::timeout(Duration::from_millis(50), async {
            while !flood.is_finished() {
                tokio::task::yield_now().await;
            }
        })
        .await
        .expect_err("the program waits");
        let mut sum = 0;
        loop {
            let frame = touch::read(&mut operator).await.unwrap().unwrap();
            match frame.kind {
                FrameKind::Stdout => sum += frame.bytes.len(),
                kind => break assert_eq!(kind, FrameKind::Exit),
            }
        }
        assert_eq!(sum, 100_000);
        drop(operator);
        session.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn an_operator_who_still_sends_hears_the_end() {
        let Rig {
            exec, stdin, end, ..
        } = rig();
        let (mut operator, connection) = duplex(64);
        let session = tokio::spawn(serve(connection, exec));
        drop(stdin);
        end.send(1).unwrap();
        // Far more than the way holds: only a session that goes on reading lets this through.
        for _ in 0..100 {
            let sent = touch::write(&mut operator, FrameKind::Stdin, &[0; 100]).await;
            sent.unwrap();
        }
        let frame = touch::read(&mut operator).await.unwrap().unwrap();
        assert_eq!(frame.kind, FrameKind::Exit);
        drop(operator);
        session.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn frames_an_operator_may_not_send_end_it() {
        // Kept: without it the program would have ended.
        let Rig {
            exec, end: _kept, ..
        } = rig();
        let (mut operator, connection) = duplex(64);
        touch::write(&mut operator, FrameKind::Exit, b"")
            .await
            .unwrap();
        assert!(serve(connection, exec).await.is_err());
    }
}
