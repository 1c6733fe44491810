//! A layer that is read while it arrives: no byte before its chunk, every byte after it, whatever
//! happens to the daemon.

use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use tokio::io::AsyncReadExt as _;
use tokio::net::{UnixListener, UnixStream};

use super::super::chunks::{Chunk, ChunkList};
use super::super::digest::Digest;
use super::super::testing::{Tar, temp};
use super::arrivals::Arrivals;
use super::arriving::{Arriving, Pick};
use super::fs::Supply as _;
use super::tests::{show, size, text};
use super::wire::{self, Ask, Hello, News};

const CHUNK: usize = 1000;
const PATIENCE: Duration = Duration::from_secs(20);

fn bytes() -> Vec<u8> {
    text(10_000).into_bytes()[..10 * CHUNK].to_vec()
}

fn list(bytes: &[u8]) -> ChunkList {
    let chunks = bytes.chunks(CHUNK).enumerate().map(|(place, chunk)| Chunk {
        hash: Sha256::digest(chunk).into(),
        offset: (place * CHUNK) as u64,
        len: u32::try_from(chunk.len()).unwrap(),
    });
    ChunkList {
        chunks: chunks.collect(),
        raw: bytes.len() as u64,
    }
}

fn chunk(bytes: &[u8], place: usize) -> &[u8] {
    &bytes[place * CHUNK..][..CHUNK]
}

/// A daemon's socket; gone when it is dropped, with its connections.
fn serve(arriving: &Arc<Arriving>, socket: &Path) -> tokio::runtime::Runtime {
    let _ = fs::remove_file(socket);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let listener = {
        let _inside = runtime.enter();
        UnixListener::bind(socket).unwrap()
    };
    let arriving = Arc::clone(arriving);
    runtime.spawn(async move {
        loop {
            let (link, _) = listener.accept().await.unwrap();
            let arriving = Arc::clone(&arriving);
            tokio::spawn(async move { speak(&arriving, link).await });
        }
    });
    runtime
}

async fn speak(arriving: &Arriving, mut link: UnixStream) {
    let length = link.read_u16_le().await.unwrap();
    let mut text = vec![0; length.into()];
    link.read_exact(&mut text).await.unwrap();
    assert_eq!(serde_json::from_slice::<Hello>(&text).unwrap(), hello());
    let _ = arriving.serve(&mut link).await;
    // The link stays as long as both are there, whatever was told.
    std::future::pending::<()>().await;
}

fn hello() -> Hello {
    Hello {
        layer: Digest::of(b"layer").to_string(),
        instance: "/instances/web-00001-a".into(),
    }
}

fn follow(list: ChunkList, tar: &Path, socket: &Path) -> Arrivals {
    Arrivals::follow(list, File::open(tar).unwrap(), socket, &hello()).unwrap()
}

/// One chunk to fetch.
fn next(arriving: &Arriving) -> Option<usize> {
    arriving.take(Pick::Any, 1).pop()
}

fn read(arrivals: &Arrivals, range: Range<u64>) -> Receiver<Vec<u8>> {
    let (says, heard) = channel();
    let then = Box::new(move |read: std::io::Result<Vec<u8>>| says.send(read.unwrap()).unwrap());
    // A middle of a file: only what is waited for is asked for.
    arrivals.read(range, &(0..1), then);
    heard
}

fn until(mut held: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + PATIENCE;
    while !held() {
        assert!(std::time::Instant::now() < deadline, "never came");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_read_waits_for_its_chunks_through_a_daemons_death() {
    let (dir, bytes) = (temp(), bytes());
    let (tar, socket) = (dir.path().join("tar"), dir.path().join("socket"));
    let arriving = Arc::new(Arriving::open(&tar, list(&bytes), &[]).unwrap());
    let daemon = serve(&arriving, &socket);
    let arrivals = follow(list(&bytes), &tar, &socket);

    // Across two chunks, which are fetched before all others.
    let waits = read(&arrivals, 4500..5500);
    until(|| arriving.profile() == [4, 5]);
    assert_eq!(next(&arriving), Some(4));
    assert!(arriving.put(4, chunk(&bytes, 4)).unwrap());
    // What comes later is told later: when this one is answered, the other still waits.
    assert_eq!(
        read(&arrivals, 4000..4100).recv_timeout(PATIENCE).unwrap(),
        &bytes[4000..4100]
    );
    assert!(waits.try_recv().is_err(), "chunk 5 is not here");

    drop(daemon);
    drop(arriving);
    assert_eq!(
        read(&arrivals, 4000..4010).recv_timeout(PATIENCE).unwrap(),
        &bytes[4000..4010],
        "what is here needs no daemon"
    );
    // The next daemon finds what the first one kept, and hears again what is waited for.
    let arriving = Arc::new(Arriving::open(&tar, list(&bytes), &[7]).unwrap());
    let _daemon = serve(&arriving, &socket);
    until(|| arriving.profile() == [4, 5]);
    let order: Vec<_> = std::iter::from_fn(|| next(&arriving)).collect();
    assert_eq!(
        order[..2],
        [5, 7],
        "waited for, then read by earlier starts"
    );
    assert!(!order.contains(&4), "it is here");
    assert!(!arriving.is_whole());
    for place in order {
        arriving.put(place, chunk(&bytes, place)).unwrap();
    }
    assert_eq!(waits.recv_timeout(PATIENCE).unwrap(), &bytes[4500..5500]);
    let whole = read(&arrivals, 0..bytes.len() as u64);
    assert_eq!(whole.recv_timeout(PATIENCE).unwrap(), bytes);
    assert!(arriving.is_whole());
}

#[test]
fn a_wrong_chunk_is_never_handed_out() {
    let (dir, bytes) = (temp(), bytes());
    let tar = dir.path().join("tar");
    let arriving = Arriving::open(&tar, list(&bytes), &[]).unwrap();
    let place = next(&arriving).unwrap();
    assert!(!arriving.put(place, chunk(&bytes, place + 1)).unwrap());
    assert!(!arriving.put(place, &[]).unwrap());
    assert!(
        !arriving.put(10, chunk(&bytes, 0)).unwrap(),
        "no such chunk"
    );
    assert_ne!(next(&arriving), Some(place), "it is being fetched");
    arriving.give_back(&[place]);
    assert_eq!(next(&arriving), Some(place), "asked for again");
    assert_eq!(fs::read(&tar).unwrap(), vec![0; bytes.len()]);
}

#[test]
fn what_nobody_can_give_fails_and_may_be_asked_for_again() {
    let (dir, bytes) = (temp(), bytes());
    let (tar, socket) = (dir.path().join("tar"), dir.path().join("socket"));
    let arriving = Arc::new(Arriving::open(&tar, list(&bytes), &[]).unwrap());
    let _daemon = serve(&arriving, &socket);
    let arrivals = follow(list(&bytes), &tar, &socket);
    let fails = failure(&arrivals, 0..10);
    until(|| !arriving.profile().is_empty());
    assert!(arriving.fail_waiting());
    fails.recv_timeout(PATIENCE).unwrap();
    let at_once = failure(&arrivals, 0..10);
    at_once.recv_timeout(PATIENCE).unwrap();

    arriving.go_on();
    let waits = read(&arrivals, 0..10);
    until(|| arriving.take(Pick::Wanted, 1) == [0]);
    arriving.put(0, chunk(&bytes, 0)).unwrap();
    assert_eq!(waits.recv_timeout(PATIENCE).unwrap(), &bytes[..10]);

    let fails = failure(&arrivals, 5000..5010);
    until(|| !arriving.take(Pick::Wanted, 1).is_empty());
    arriving.void();
    fails.recv_timeout(PATIENCE).unwrap();
    let also_what_is_here = failure(&arrivals, 0..10);
    also_what_is_here.recv_timeout(PATIENCE).unwrap();
}

/// Hears when a read fails.
fn failure(arrivals: &Arrivals, range: Range<u64>) -> Receiver<()> {
    let (says, heard) = channel();
    let then = Box::new(move |read: std::io::Result<Vec<u8>>| {
        read.unwrap_err();
        says.send(()).unwrap();
    });
    // A middle of a file: only what is waited for is asked for.
    arrivals.read(range, &(0..1), then);
    heard
}

/// Whoever did not hear all looks for itself.
#[test]
fn what_a_daemon_is_done_with_is_read_by_its_hashes() {
    let (dir, bytes) = (temp(), bytes());
    let (tar, socket) = (dir.path().join("tar"), dir.path().join("socket"));
    let arriving = Arc::new(Arriving::open(&tar, list(&bytes), &[]).unwrap());
    let file = File::options().write(true).open(&tar).unwrap();
    file.write_all_at(chunk(&bytes, 3), 3000).unwrap();
    let arrivals = follow(list(&bytes), &tar, &socket);
    let (waits, fails) = (read(&arrivals, 3000..4000), failure(&arrivals, 0..1));
    arriving.close();
    let _daemon = serve(&arriving, &socket);
    assert_eq!(waits.recv_timeout(PATIENCE).unwrap(), chunk(&bytes, 3));
    fails.recv_timeout(PATIENCE).unwrap();
    file.write_all_at(chunk(&bytes, 4), 4000).unwrap();
    let later = read(&arrivals, 3500..4500);
    assert_eq!(later.recv_timeout(PATIENCE).unwrap(), &bytes[3500..4500]);
    failure(&arrivals, 4500..5500)
        .recv_timeout(PATIENCE)
        .unwrap();
}

#[test]
fn runs_are_of_the_list_or_refused() {
    let table = [(0..10, true), (9..10, true), (9..11, false), (5..5, false)];
    for (run, good) in table {
        for ask in [Ask::Wanted(run.clone()), Ask::Ahead(run.clone())] {
            let decoded = Ask::decode(ask.encode(), 10);
            assert_eq!(decoded, good.then_some(ask));
        }
        let news = News::Here(run);
        let decoded = News::decode(news.encode(), 10);
        assert_eq!(decoded, good.then_some(news));
    }
    assert_eq!(News::decode([9; wire::FRAME], usize::MAX), None);
    assert_eq!(Ask::decode([9; wire::FRAME], usize::MAX), None);
}

#[test]
fn a_file_is_read_as_its_chunks_come_and_holds_up_no_other() {
    let dir = temp();
    let content = text(40_000);
    let tar = Tar::default()
        .file("late", &content)
        .file("early", &content)
        .end();
    let (path, socket) = (dir.path().join("tar"), dir.path().join("socket"));
    let cut = list(&tar);
    let arriving = Arc::new(Arriving::open(&path, cut.clone(), &[]).unwrap());
    let _daemon = serve(&arriving, &socket);
    let arrivals = follow(cut.clone(), &path, &socket);
    let at = dir.path().join("lazy");
    fs::create_dir(&at).unwrap();
    let _mount = show(&tar, arrivals, &at, None);

    let late = at.join("late");
    let reading = std::thread::spawn(move || fs::read_to_string(late).unwrap());
    until(|| !arriving.profile().is_empty());
    // Its read waits; names, attributes and other files are there.
    assert_eq!(fs::read_dir(&at).unwrap().count(), 2);
    let first = content.len() / CHUNK;
    for place in first..cut.chunks.len() {
        arriving
            .put(place, piece(&tar, &cut.chunks[place]))
            .unwrap();
    }
    let early = fs::read_to_string(at.join("early"));
    for place in 0..first {
        arriving
            .put(place, piece(&tar, &cut.chunks[place]))
            .unwrap();
    }
    assert!(early.unwrap() == content);
    assert!(reading.join().unwrap() == content);
}

fn piece<'a>(tar: &'a [u8], chunk: &Chunk) -> &'a [u8] {
    &tar[size(chunk.offset)..][..chunk.len as usize]
}
