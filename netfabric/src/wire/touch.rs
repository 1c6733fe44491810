//! Touching an instance: what is asked of the node that has it, and the frames of the connection that
//! follows. The command line and the node speak them over an upgraded HTTP connection, nodes pass
//! them on as they are.
//!
//! A frame is a kind (one byte), a length (four bytes, big-endian) and that many bytes.

use std::io;

use scheduler::model::InstanceId;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::api::ApiError;
use super::frame::FrameError;

/// The protocol's name in HTTP's `Upgrade` header.
pub const PROTOCOL: &str = "selvedge-touch";
/// Larger frames are refused.
pub const MAX_FRAME: usize = 64 << 10;
/// What a stream is cut into: small enough that a keystroke never waits long behind it.
pub const CHUNK: usize = 16 << 10;

/// What is wanted of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Touch {
    pub instance: InstanceId,
    pub wish: Wish,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Wish {
    Exec(ExecRequest),
    Copy(CopyRequest),
    /// Bytes to and from this port of the instance, without frames.
    Forward(u16),
}

/// `POST /v1/instances/ID/exec`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ExecRequest {
    pub args: Vec<String>,
    /// Beyond the container's own environment.
    pub env: Vec<(String, String)>,
    pub cwd: Option<String>,
    /// As in an image; the container's own when missing.
    pub user: Option<String>,
    /// A terminal of this size instead of three streams.
    pub tty: Option<Size>,
    /// Whether stdin frames will come; otherwise the program's input is empty.
    pub stdin: bool,
}

/// `POST /v1/instances/ID/copy`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CopyRequest {
    pub path: String,
    pub way: Way,
    /// As in an image; the container's own when missing.
    #[serde(default)]
    pub user: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Way {
    /// A tar of the path in stdout frames.
    Out,
    /// A tar with one top in stdin frames: into the folder `path`, or to be `path`.
    In,
    /// A tar in stdin frames, into the folder `path` as it is.
    InAsIs,
}

/// The answer to a [`Touch`] between nodes, before the frames.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Touched {
    pub refused: Option<ApiError>,
}

/// Columns and rows of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Size {
    pub columns: u16,
    pub rows: u16,
}

impl Size {
    /// A resize frame's bytes.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 4] {
        let ([a, b], [c, d]) = (self.columns.to_be_bytes(), self.rows.to_be_bytes());
        [a, b, c, d]
    }

    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let [a, b, c, d] = *bytes.first_chunk().filter(|_| bytes.len() == 4)?;
        Some(Self {
            columns: u16::from_be_bytes([a, b]),
            rows: u16::from_be_bytes([c, d]),
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    Stdin = 0,
    Stdout = 1,
    Stderr = 2,
    /// A [`Size`].
    Resize = 3,
    /// The program's exit code, four bytes; the last frame.
    Exit = 4,
    /// The end of stdin.
    Eof = 5,
    /// Instead of an exit: an [`ApiError`] as JSON; the last frame.
    Error = 6,
}

impl FrameKind {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            0 => Self::Stdin,
            1 => Self::Stdout,
            2 => Self::Stderr,
            3 => Self::Resize,
            4 => Self::Exit,
            5 => Self::Eof,
            6 => Self::Error,
            _ => return None,
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub kind: FrameKind,
    pub bytes: Vec<u8>,
}

/// Reads one frame; `None` when the stream ended before its first byte.
pub async fn read<R>(from: &mut R) -> Result<Option<Frame>, FrameError>
where
    R: AsyncRead + Unpin + ?Sized,
{
    let mut kind = [0];
    if from.read(&mut kind).await? == 0 {
        return Ok(None);
    }
    let kind = FrameKind::from_byte(kind[0])
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a frame of no known kind"))?;
    let cut = |error: io::Error| match error.kind() {
        io::ErrorKind::UnexpectedEof => FrameError::Truncated,
        _ => FrameError::Io(error),
    };
    let len = from.read_u32().await.map_err(cut)?;
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    if len > MAX_FRAME {
        return Err(FrameError::TooLarge {
            len,
            limit: MAX_FRAME,
        });
    }
    let mut bytes = vec![0; len];
    from.read_exact(&mut bytes).await.map_err(cut)?;
    Ok(Some(Frame { kind, bytes }))
}

/// Writes one frame and flushes it.
pub async fn write<W>(to: &mut W, kind: FrameKind, bytes: &[u8]) -> Result<(), FrameError>
where
    W: AsyncWrite + Unpin + ?Sized,
{
    let too_large = FrameError::TooLarge {
        len: bytes.len(),
        limit: MAX_FRAME,
    };
    let Some(len) = u32::try_from(bytes.len())
        .ok()
        .filter(|_| bytes.len() <= MAX_FRAME)
    else {
        return Err(too_large);
    };
    let mut whole = Vec::with_capacity(5 + bytes.len());
    whole.push(kind as u8);
    whole.extend_from_slice(&len.to_be_bytes());
    whole.extend_from_slice(bytes);
    to.write_all(&whole).await?;
    to.flush().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn frames_come_back_as_they_were() {
        let size = Size {
            columns: 300,
            rows: 50,
        };
        let big = vec![9; MAX_FRAME];
        let (mut a, mut b) = tokio::io::duplex(1000);
        let send = async {
            write(&mut a, FrameKind::Resize, &size.to_bytes())
                .await
                .unwrap();
            write(&mut a, FrameKind::Stdin, &big).await.unwrap();
            write(&mut a, FrameKind::Eof, b"").await.unwrap();
            drop(a);
        };
        let receive = async {
            let frame = read(&mut b).await.unwrap().unwrap();
            assert_eq!(frame.kind, FrameKind::Resize);
            assert_eq!(Size::from_bytes(&frame.bytes), Some(size));
            assert_eq!(read(&mut b).await.unwrap().unwrap().bytes, big);
            assert_eq!(read(&mut b).await.unwrap().unwrap().kind, FrameKind::Eof);
            assert_eq!(read(&mut b).await.unwrap(), None);
        };
        tokio::join!(send, receive);
        assert_eq!(Size::from_bytes(&[1, 2, 3]), None);
        assert_eq!(Size::from_bytes(&[1, 2, 3, 4, 5]), None);
    }

    #[tokio::test]
    async fn bad_frames_are_refused() {
        let too_large = [&[1][..], &u32::MAX.to_be_bytes()].concat();
        let error = read(&mut &too_large[..]).await.unwrap_err();
        assert!(matches!(error, FrameError::TooLarge { .. }), "{error}");
        let error = read(&mut &[77_u8, 0, 0, 0, 0][..]).await.unwrap_err();
        assert!(matches!(error, FrameError::Io(_)), "{error}");
        for cut in [&[1_u8, 0, 0][..], &[1, 0, 0, 0, 5, 1]] {
            let error = read(&mut &cut[..]).await.unwrap_err();
            assert!(matches!(error, FrameError::Truncated), "{error}");
        }
        let mut out = Vec::new();
        let large = vec![0; MAX_FRAME + 1];
        assert!(write(&mut out, FrameKind::Stdout, &large).await.is_err());
        assert!(out.is_empty(), "nothing half-written");
    }
}
