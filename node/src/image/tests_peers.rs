//! Images from peers that fail, lie, stall and cut off: stores of several nodes joined in memory, where
//! nobody is waited for as long as on a network.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use netfabric::wire::image::{ImageAnswer, ImageRequest};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use scheduler::model::{ImagePin, NodeId};
use tempfile::TempDir;
use tokio::sync::mpsc;

use super::testing::{Tar, free_address, impatient, install_tls, oci_archive, open_store, temp};
use super::{Answers, Digest, Image, ImageError, Near, Neighbour, Reference, Store, Waits, serve};

/// What is wrong with a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    None,
    Dead,
    Silent,
    /// Every chunk, list and document has a byte changed.
    Lying,
    /// Its chunk list is of another layer, and its chunks are by that list.
    OtherList,
    /// No answer after so many.
    StallsAfter(u32),
    CutAfter(u32),
    RefusesAll,
}

struct Peer {
    store: Store,
    fault: Fault,
    near: bool,
}

pub(super) struct Room {
    peers: BTreeMap<NodeId, Peer>,
    /// Another layer that peers with the wrong list give instead.
    other: String,
    pub(super) moved: Arc<Mutex<u64>>,
}

#[async_trait]
impl Near for Room {
    fn me(&self) -> NodeId {
        NodeId(0)
    }

    fn waits(&self) -> Waits {
        Waits {
            quick: Duration::from_millis(500),
            answer: Duration::from_secs(1),
            stall: Duration::from_secs(1),
            most: Duration::from_secs(2),
        }
    }

    fn neighbours(&self) -> Vec<Neighbour> {
        let me = Neighbour {
            node: NodeId(0),
            near: true,
            rtt: 0,
            images: Vec::new(),
        };
        let others = self.peers.iter().map(|(node, peer)| Neighbour {
            node: *node,
            near: peer.near,
            rtt: 100,
            images: Vec::new(),
        });
        others.chain([me]).collect()
    }

    async fn ask(
        &self,
        node: NodeId,
        request: ImageRequest,
        _: Duration,
    ) -> io::Result<Box<dyn Answers>> {
        let peer = &self.peers[&node];
        let fault = peer.fault;
        match fault {
            Fault::Dead => return Err(io::ErrorKind::ConnectionRefused.into()),
            Fault::Silent => std::future::pending().await,
            _ => {}
        }
        let request = match request {
            ImageRequest::ChunkList { .. } if fault == Fault::OtherList => {
                let layer = self.other.clone();
                ImageRequest::ChunkList { layer }
            }
            ImageRequest::Chunks { ranges, .. } if fault == Fault::OtherList => {
                let layer = self.other.clone();
                ImageRequest::Chunks { layer, ranges }
            }
            request => request,
        };
        let (answers, arriving) = mpsc::channel(2);
        let store = peer.store.clone();
        tokio::spawn(async move { serve(&store, &impatient(), request, answers).await });
        let moved = Arc::clone(&self.moved);
        Ok(Box::new(Faulty {
            arriving,
            fault,
            moved,
            said: 0,
        }))
    }
}

struct Faulty {
    arriving: mpsc::Receiver<ImageAnswer>,
    fault: Fault,
    moved: Arc<Mutex<u64>>,
    said: u32,
}

#[async_trait]
impl Answers for Faulty {
    async fn next(&mut self) -> io::Result<ImageAnswer> {
        self.said += 1;
        match self.fault {
            Fault::StallsAfter(n) if self.said > n => std::future::pending().await,
            Fault::CutAfter(n) if self.said > n => {
                return Err(io::ErrorKind::ConnectionReset.into());
            }
            Fault::RefusesAll => return Ok(ImageAnswer::Refused("not today".to_owned())),
            _ => {}
        }
        let answer = self.arriving.recv().await;
        let mut answer = answer.ok_or(io::ErrorKind::UnexpectedEof)?;
        if let ImageAnswer::Chunks { packed, .. } = &answer {
            *self.moved.lock().unwrap() += packed.len() as u64;
        }
        if self.fault == Fault::Lying {
            match &mut answer {
                ImageAnswer::Document(bytes)
                | ImageAnswer::Piece(bytes)
                | ImageAnswer::Chunks { packed: bytes, .. } => {
                    let at = bytes.len() / 2;
                    bytes[at] ^= 1;
                }
                _ => {}
            }
        }
        Ok(answer)
    }
}

/// Bytes that neither pack nor repeat, the same for the same seed.
pub(super) fn noise(seed: u64, len: usize) -> String {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let step = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        char::from(b'!' + (state % 90) as u8)
    };
    std::iter::repeat_with(step).take(len).collect()
}

/// A layer of 20 files, of which `changed` are of another version.
fn layer(changed: u64) -> Vec<u8> {
    let mut tar = Tar::default().dir("data");
    for file in 0..20 {
        let seed = if file < changed { 1000 + file } else { file };
        tar = tar.file(&format!("data/f{file}"), &noise(seed, 50_000));
    }
    tar.end()
}

pub(super) const NAME: &str = "peers.test/app:1";

pub(super) async fn import(store: &Store, tar: Vec<u8>, name: &str) -> Arc<Image> {
    let archive = oci_archive(&[tar]);
    let name = Reference::parse(name).unwrap();
    let mut images = store.import(&archive[..], Some(&name)).await.unwrap();
    images.remove(0)
}

/// A node that holds the image, and an other one.
async fn holder() -> (TempDir, Store, ImagePin, String) {
    let dir = temp();
    let store = open_store(&dir);
    let image = import(&store, layer(0), NAME).await;
    let other = import(&store, layer(20), "peers.test/other:1").await;
    (dir, store, image.pin.clone(), other.layers[0].clone())
}

/// Its registry does not exist: nobody listens there.
pub(super) fn nowhere(pin: &ImagePin) -> (ImagePin, super::RegistryConfig) {
    let (address, mut config) = (free_address().to_string(), impatient());
    config.insecure.insert(address.clone());
    let reference = format!("{address}/app:1");
    let digest = pin.digest.clone();
    (ImagePin { reference, digest }, config)
}

pub(super) fn room(store: &Store, other: &str, faults: &[(Fault, bool)]) -> Room {
    let peers = (1..).zip(faults).map(|(node, (fault, near))| {
        let (store, fault, near) = (store.clone(), *fault, *near);
        (NodeId(node), Peer { store, fault, near })
    });
    Room {
        peers: peers.collect(),
        other: other.to_owned(),
        moved: Arc::default(),
    }
}

pub(super) fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().unwrap()
}

/// What a tag means only its registry knows; a digest is the image, whoever has it.
#[test]
fn a_digest_is_resolved_without_its_registry_and_a_tag_is_not() {
    install_tls();
    runtime().block_on(async {
        let dirs = [temp(), temp()];
        let (there, here) = (open_store(&dirs[0]), open_store(&dirs[1]));
        let image = import(&there, Tar::default().file("f", "x").end(), NAME).await;
        let (pin, config) = nowhere(&image.pin);
        let tagged = Reference::parse(&pin.reference).unwrap();
        let pinned = tagged.with_digest(pin.digest.parse().unwrap());
        assert!(
            here.resolve(&pinned, &config).await.is_err(),
            "nobody is near"
        );
        here.set_near(Arc::new(room(&there, "", &[(Fault::None, false)])));
        assert_eq!(here.resolve(&pinned, &config).await.unwrap(), pin);
        let error = here.resolve(&tagged, &config).await.unwrap_err();
        assert!(error.is_passing(), "{error}");
        let unknown = tagged.with_digest(Digest::of(b"nobody's"));
        assert!(here.resolve(&unknown, &config).await.is_err());
    });
}

#[test]
fn whatever_peers_do_an_honest_one_is_enough() {
    install_tls();
    let runtime = runtime();
    let (_dir, store, pin, other) = runtime.block_on(holder());
    let fault = prop_oneof![
        Just(Fault::Dead),
        Just(Fault::Silent),
        Just(Fault::Lying),
        Just(Fault::OtherList),
        Just(Fault::RefusesAll),
        (0u32..8).prop_map(Fault::StallsAfter),
        (0u32..8).prop_map(Fault::CutAfter),
    ];
    let peers = prop::collection::vec((fault, any::<bool>()), 0..5);
    let mut runner = TestRunner::new(Config {
        cases: 16,
        failure_persistence: None,
        ..Config::default()
    });
    let cases = (peers, any::<Option<bool>>(), 0usize..6);
    let outcome = runner.run(&cases, |(mut faults, honest, place)| {
        if let Some(near) = honest {
            faults.insert(place.min(faults.len()), (Fault::None, near));
        }
        let dir = temp();
        let here = open_store(&dir);
        here.set_near(Arc::new(room(&store, &other, &faults)));
        let (pin, config) = nowhere(&pin);
        match runtime.block_on(here.pull(&pin, &config, None)) {
            Ok(image) => {
                prop_assert_eq!(&image.pin.digest, &pin.digest);
                let path = dir.path().join("images/layers");
                let hex = image.layers[0].trim_start_matches("sha256:");
                let file = path.join(hex).join("fs/data/f19");
                prop_assert!(std::fs::read_to_string(file).unwrap() == noise(19, 50_000));
            }
            Err(error) => prop_assert!(honest.is_none(), "{error}: {faults:?}"),
        }
        Ok(())
    });
    outcome.unwrap();
}

/// The first peer breaks off in the middle; the next goes on where it stopped.
#[test]
fn what_has_arrived_is_not_fetched_again() {
    install_tls();
    let runtime = runtime();
    runtime.block_on(async {
        let (_dir, store, pin, other) = holder().await;
        let (pin, config) = nowhere(&pin);
        let mut sizes = Vec::new();
        for faults in [
            &[(Fault::None, true)][..],
            &[(Fault::CutAfter(2), true), (Fault::None, true)],
        ] {
            let dir = temp();
            let here = open_store(&dir);
            let room = room(&store, &other, faults);
            let moved = Arc::clone(&room.moved);
            here.set_near(Arc::new(room));
            here.pull(&pin, &config, None).await.unwrap();
            sizes.push(*moved.lock().unwrap());
        }
        assert!(
            sizes[1] < sizes[0] + sizes[0] / 3,
            "at most a batch comes twice: {sizes:?}"
        );
    });
}

/// Of a layer of many windows several are on their way when the first peer fails: the next goes on with all
/// of them, and what came is not asked for again.
#[test]
fn windows_on_their_way_outlive_their_peer() {
    install_tls();
    let runtime = runtime();
    runtime.block_on(async {
        let there = temp();
        let store = open_store(&there);
        let files = (0..6).fold(Tar::default(), |tar, file| {
            tar.file(&format!("f{file}"), &noise(file, 1_000_000))
        });
        let image = import(&store, files.end(), NAME).await;
        let other = import(&store, layer(20), "peers.test/other:1").await;
        let (pin, config) = nowhere(&image.pin);
        let mut sizes = Vec::new();
        for fault in [
            Fault::None,
            Fault::CutAfter(3),
            Fault::StallsAfter(2),
            Fault::Lying,
            Fault::OtherList,
        ] {
            let dir = temp();
            let here = open_store(&dir);
            let peers = [(fault, true), (Fault::None, true), (Fault::None, false)];
            let room = room(&store, &other.layers[0], &peers);
            let moved = Arc::clone(&room.moved);
            here.set_near(Arc::new(room));
            let pulled = here.pull(&pin, &config, None).await;
            let pulled = pulled.unwrap_or_else(|error| panic!("{fault:?}: {error}"));
            here.verified(&pulled).await.unwrap();
            sizes.push(*moved.lock().unwrap());
        }
        let most = sizes[0] * 4 / 3;
        assert!(sizes.iter().all(|size| *size < most), "{sizes:?}");
    });
}

#[test]
fn a_new_version_moves_only_what_changed() {
    install_tls();
    let runtime = runtime();
    runtime.block_on(async {
        let (dir, there) = (temp(), temp());
        let (here, store) = (open_store(&dir), open_store(&there));
        import(&here, layer(0), NAME).await;
        let image = import(&store, layer(1), NAME).await;
        let room = room(&store, "", &[(Fault::None, true)]);
        let moved = Arc::clone(&room.moved);
        here.set_near(Arc::new(room));
        let (pin, config) = nowhere(&image.pin);
        here.pull(&pin, &config, None).await.unwrap();
        let (moved, all) = (*moved.lock().unwrap(), image.bytes);
        assert!(moved * 8 < all, "{moved} of {all} bytes");
        assert!(moved > 0);
        let counts = here.counts().await.unwrap();
        let counted = counts.moved;
        assert_eq!(counts.pulled.classes.iter().sum::<u64>(), 1);
        assert!(counted.registry == 0 && counted.peer > moved, "{counted:?}");
        assert!(counted.local * 8 > all * 7, "{counted:?} of {all}");
    });
}

#[test]
fn without_peers_that_have_it_the_registrys_error_is_told() {
    install_tls();
    let runtime = runtime();
    runtime.block_on(async {
        let (dir, there) = (temp(), temp());
        let (here, store) = (open_store(&dir), open_store(&there));
        let image = import(&here, layer(0), NAME).await;
        here.remove(&image.pin.digest).await.unwrap();
        here.set_near(Arc::new(room(&store, "", &[(Fault::None, true)])));
        let (pin, config) = nowhere(&image.pin);
        let error = here.pull(&pin, &config, None).await.unwrap_err();
        assert!(matches!(error, ImageError::Unreachable { .. }), "{error}");
    });
}
