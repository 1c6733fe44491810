//! Leases of the instance's own, taken and given up at the word of whoever tests them.

use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::Mutex;
use tokio::time::timeout;

/// The node tells where its socket is.
const SOCKET: &str = "SELVEDGE_BUSY";
const PATIENCE: Duration = Duration::from_secs(5);

/// The connection that holds one.
static HELD: Mutex<Option<UnixStream>> = Mutex::const_new(None);

/// Says a line to the node and tells its answer. The connection is kept for the next one; without a word
/// it is ended.
pub async fn say(line: &str) -> Result<String> {
    let mut held = HELD.lock().await;
    if line.is_empty() {
        *held = None;
        return Ok("ended\n".to_owned());
    }
    if held.is_none() {
        let socket = std::env::var(SOCKET).context(SOCKET)?;
        *held = Some(UnixStream::connect(&socket).await.context(socket)?);
    }
    let stream = held.as_mut().context("no connection")?;
    stream.write_all(format!("{line}\n").as_bytes()).await?;
    let mut answer = vec![0; 256];
    let read = timeout(PATIENCE, stream.read(&mut answer)).await??;
    answer.truncate(read);
    Ok(String::from_utf8(answer)?)
}
