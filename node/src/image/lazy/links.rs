//! The daemon's ears for the processes that show layers: tells them what arrives, and hears when one
//! is gone while its instance is not. Such an instance can read nothing more and is given up.

use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::{sleep, timeout};

use super::super::digest::Digest;
use super::super::snapshot;
use super::super::store::Store;
use super::wire::{self, Hello, News};

/// A process says whom it shows its layer to at once.
const HELLO: Duration = Duration::from_secs(5);
/// No file descriptor, for now.
const PAUSE: Duration = Duration::from_millis(100);

pub(super) async fn listen(store: Store, listener: UnixListener) {
    loop {
        match listener.accept().await {
            Ok((link, _)) => drop(tokio::spawn(follow(store.clone(), link))),
            Err(_) => sleep(PAUSE).await,
        }
    }
}

/// One process, to its end.
async fn follow(store: Store, mut link: UnixStream) {
    let Ok(Ok(hello)) = timeout(HELLO, hello(&mut link)).await else {
        return;
    };
    let Ok(layer) = hello.layer.parse::<Digest>() else {
        return;
    };
    // A process that a peer's bytes took over could name another's instance, to have it ended.
    let its_own = || store.inner.books().runs_from(&hello.instance, &layer);
    let arrival = store.inner.coming().layer(&layer);
    if let Some(arrival) = arrival {
        let told = arrival.arriving.serve(&mut link).await;
        if told.is_err_and(|e| e.kind() == io::ErrorKind::InvalidData) {
            // It comes again, and everything is said anew.
            return;
        }
        if arrival.is_void() && its_own() {
            return give_up(&store, &hello.instance).await;
        }
    } else if link.write_all(&News::Done.encode()).await.is_err() {
        return;
    }
    // It has been told all; what it still says was said before it heard.
    let mut rest = [0; wire::FRAME];
    while link.read(&mut rest).await.is_ok_and(|read| read > 0) {}
    if its_own() && snapshot::is_mounted(&hello.instance) {
        tracing::error!(instance = %hello.instance.display(), layer = layer.short(),
            "the process that shows a layer is gone: its instance is ended");
        give_up(&store, &hello.instance).await;
    }
}

async fn hello(link: &mut UnixStream) -> io::Result<Hello> {
    let length = usize::from(link.read_u16_le().await?);
    if length > wire::MAX_HELLO {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut text = vec![0; length];
    link.read_exact(&mut text).await?;
    Ok(serde_json::from_slice(&text)?)
}

async fn give_up(store: &Store, instance: &Path) {
    if let Some(broken) = store.inner.broken.get() {
        let _ = broken.send(instance.to_owned()).await;
    }
}

/// Instances whose process went while nobody listened.
pub(super) async fn look(store: &Store) {
    let dead = store.blocking(|inner| {
        let instances = inner.instances();
        let dead = instances.into_iter().filter(|i| snapshot::is_dead(i));
        Ok(dead.collect::<Vec<_>>())
    });
    for instance in dead.await.unwrap_or_default() {
        tracing::error!(instance = %instance.display(),
            "the process that shows a layer went with an earlier daemon: its instance is ended");
        give_up(store, &instance).await;
    }
}
