//! Frames on a stream: a length of four bytes (big-endian), then that many bytes.

use std::io;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::codec::{self, CodecError};

/// Memory grows by what has arrived, in steps of this, not by what the length promises.
const STEP: usize = 64 * 1024;

/// Why a frame could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    #[error("a frame of {len} bytes; at most {limit} are allowed here")]
    TooLarge { len: usize, limit: usize },
    #[error("the stream ended inside a frame")]
    Truncated,
    #[error("stream: {0}")]
    Io(#[from] io::Error),
    #[error("frame content: {0}")]
    Codec(#[from] CodecError),
}

/// Writes one frame of at most `limit` bytes and flushes it.
pub async fn write_frame<W>(to: &mut W, bytes: &[u8], limit: usize) -> Result<(), FrameError>
where
    W: AsyncWrite + Unpin + ?Sized,
{
    let too_large = FrameError::TooLarge {
        len: bytes.len(),
        limit,
    };
    let Ok(len) = u32::try_from(bytes.len()) else {
        return Err(too_large);
    };
    if bytes.len() > limit {
        return Err(too_large);
    }
    to.write_all(&len.to_be_bytes()).await?;
    to.write_all(bytes).await?;
    to.flush().await?;
    Ok(())
}

/// Reads one frame of at most `limit` bytes; `None` when the stream ended before its first byte.
pub async fn read_frame<R>(from: &mut R, limit: usize) -> Result<Option<Vec<u8>>, FrameError>
where
    R: AsyncRead + Unpin + ?Sized,
{
    let mut head = [0; 4];
    let mut got = 0;
    while got < head.len() {
        match from.read(&mut head[got..]).await? {
            0 if got == 0 => return Ok(None),
            0 => return Err(FrameError::Truncated),
            n => got += n,
        }
    }
    let len = usize::try_from(u32::from_be_bytes(head)).unwrap_or(usize::MAX);
    if len > limit {
        return Err(FrameError::TooLarge { len, limit });
    }
    let mut bytes = Vec::new();
    while bytes.len() < len {
        let start = bytes.len();
        bytes.resize(len.min(start + STEP), 0);
        match from.read_exact(&mut bytes[start..]).await {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(FrameError::Truncated);
            }
            result => result?,
        };
    }
    Ok(Some(bytes))
}

/// Encodes `value` into one frame.
pub async fn write_value<W, T>(to: &mut W, value: &T, limit: usize) -> Result<(), FrameError>
where
    W: AsyncWrite + Unpin + ?Sized,
    T: Serialize + ?Sized,
{
    write_frame(to, &codec::encode(value)?, limit).await
}

/// Reads one frame and decodes it; an end of the stream instead is an error.
pub async fn read_value<R, T>(from: &mut R, limit: usize) -> Result<T, FrameError>
where
    R: AsyncRead + Unpin + ?Sized,
    T: DeserializeOwned,
{
    let bytes = read_frame(from, limit)
        .await?
        .ok_or(FrameError::Truncated)?;
    Ok(codec::decode_within(&bytes, limit)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn frames_come_back_in_order_and_the_end_is_seen() {
        let (mut a, mut b) = tokio::io::duplex(1000);
        let big = vec![7u8; 200_000];
        let send = async {
            write_frame(&mut a, b"", 10).await.unwrap();
            write_frame(&mut a, &big, 1 << 20).await.unwrap();
            write_value(&mut a, &42u64, 100).await.unwrap();
            drop(a);
        };
        let receive = async {
            assert_eq!(read_frame(&mut b, 10).await.unwrap().unwrap(), b"");
            assert_eq!(read_frame(&mut b, 1 << 20).await.unwrap().unwrap(), big);
            assert_eq!(read_value::<_, u64>(&mut b, 100).await.unwrap(), 42);
            assert!(read_frame(&mut b, 10).await.unwrap().is_none());
        };
        tokio::join!(send, receive);
    }

    #[tokio::test]
    async fn too_large_and_truncated_frames_are_refused() {
        let mut out = Vec::new();
        let error = write_frame(&mut out, &[0; 11], 10).await.unwrap_err();
        assert!(matches!(error, FrameError::TooLarge { len: 11, limit: 10 }));
        assert!(out.is_empty(), "nothing half-written");
        let error = read_frame(&mut &[255u8, 255, 255, 255, 1][..], 10)
            .await
            .unwrap_err();
        assert!(matches!(error, FrameError::TooLarge { .. }));
        for cut in [&[0u8, 0][..], &[0, 0, 0, 5, 1, 2]] {
            let error = read_frame(&mut &cut[..], 10).await.unwrap_err();
            assert!(matches!(error, FrameError::Truncated), "{error}");
        }
    }
}
