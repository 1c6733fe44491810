//! Where the bytes of a layer that is read while it arrives come from: stores joined in memory, with
//! peers that fail and lie.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use scheduler::model::{ImagePin, NodeId};
use tempfile::TempDir;
use tokio::time::timeout;

use super::super::books::Use;
use super::super::budget::{Budget, Limits};
use super::super::digest::Digest;
use super::super::implied;
use super::super::peers::Company;
use super::super::store::Store;
use super::super::testing::{Tar, impatient, install_tls, open_store, temp};
use super::super::tests_peers::{Fault, NAME, import, noise, nowhere, room, runtime};
use super::super::{Image, Prune, RegistryConfig};
use super::arrival::{self, Arrival};
use super::arrivals::Arrivals;
use super::fs::Supply as _;
use super::told::Told;
use super::wire::Hello;
use super::{LAIR, SOCKET, links, start};

const FILES: u64 = 10;
const SIZE: usize = 50_000;
const PATIENCE: Duration = Duration::from_secs(20);

/// Layers of one size whose files have these letters in front; `seed` makes their bytes.
fn layer(letter: char, seed: u64) -> Vec<u8> {
    let files = (0..FILES).map(|n| (format!("{letter}{n}"), noise(seed + n, SIZE)));
    files
        .fold(Tar::default(), |tar, (name, text)| tar.file(&name, &text))
        .end()
}

/// A store that holds a layer and two liars' versions of it, and one that holds nothing.
struct Two {
    there: Store,
    image: Arc<Image>,
    others: [String; 2],
    here: Store,
    dirs: [TempDir; 2],
}

impl Two {
    async fn new(faults: &[(Fault, bool)]) -> Self {
        let dirs = [temp(), temp()];
        let (there, here) = (open_store(&dirs[0]), open_store(&dirs[1]));
        let image = import(&there, layer('f', 1), NAME).await;
        let bytes = import(&there, layer('f', 100), "peers.test/bytes:1").await;
        let names = import(&there, layer('g', 1), "peers.test/names:1").await;
        let others = [bytes, names].map(|other| other.layers[0].clone());
        here.set_near(Arc::new(room(&there, &others[0], faults)));
        Self {
            there,
            image,
            others,
            here,
            dirs,
        }
    }

    fn diff_id(&self) -> Digest {
        self.image.layers[0].parse().unwrap()
    }

    fn company(&self) -> Company {
        let near = Arc::clone(self.here.inner.near.get().unwrap());
        Company::new(self.here.clone(), near, self.image.pin.clone(), false)
    }

    /// The layer arrives from now on, as it was told.
    fn begin(&self, told: Told) -> Arc<Arrival> {
        let coming = self.dirs[1].path().join("images/coming");
        let budget = Budget::new(Limits::default());
        let arrival = Arrival::begin(&coming, &self.diff_id(), told, &budget).unwrap();
        self.here.inner.coming().add_layer(arrival);
        self.here.inner.coming().layer(&self.diff_id()).unwrap()
    }

    /// A process's side of it.
    fn reader(&self, arrival: &Arrival) -> Arrivals {
        let (_, list, tar) = arrival::Parts::open(arrival.folder())
            .and_then(arrival::Parts::read)
            .unwrap();
        let socket = self.dirs[1].path().join("images").join(LAIR).join(SOCKET);
        let hello = Hello {
            layer: self.diff_id().to_string(),
            instance: "/nowhere/i".into(),
        };
        Arrivals::follow(list, tar, &socket, &hello).unwrap()
    }

    fn listen(&self) {
        let images = self.dirs[1].path().join("images");
        let listener = start::bind(&images).unwrap();
        tokio::spawn(links::listen(self.here.clone(), listener));
    }

    fn nowhere(&self) -> (ImagePin, RegistryConfig) {
        nowhere(&self.image.pin)
    }

    fn unpacked(&self) -> String {
        let layers = self.dirs[1].path().join("images/layers");
        let path = layers.join(self.diff_id().hex()).join("fs/f3");
        std::fs::read_to_string(path).unwrap()
    }
}

/// The content of the file `f3`, as whoever reads it through the mount would get it.
async fn read(arrivals: &Arrivals) -> Option<Vec<u8>> {
    // A header and padded content for each file before it.
    let at = 3 * (512 + SIZE.next_multiple_of(512)) as u64 + 512;
    let (says, heard) = channel();
    let then = Box::new(move |read: std::io::Result<Vec<u8>>| says.send(read.ok()).unwrap());
    let file = at..at + SIZE as u64;
    arrivals.read(file.clone(), &file, then);
    let heard = tokio::task::spawn_blocking(move || heard.recv_timeout(PATIENCE));
    heard.await.unwrap().expect("an answer")
}

#[test]
fn whatever_peers_do_a_reader_gets_the_right_bytes() {
    install_tls();
    runtime().block_on(async {
        for fault in [
            Fault::None,
            Fault::Dead,
            Fault::Lying,
            Fault::OtherList,
            Fault::StallsAfter(2),
            Fault::CutAfter(1),
        ] {
            let two = Two::new(&[(fault, true), (Fault::None, false)]).await;
            two.listen();
            let told = two.company().told_by(NodeId(2), &two.diff_id()).await;
            let arrival = two.begin(told.unwrap());
            let reader = two.reader(&arrival);
            let (pin, config) = two.nowhere();
            let pulling = two.here.pull(&pin, &config, None);
            let (read, pulled) = tokio::join!(read(&reader), pulling);
            assert!(read.unwrap() == noise(4, SIZE).as_bytes(), "{fault:?}");
            pulled.unwrap();
            assert!(two.unpacked() == noise(4, SIZE) && !arrival.is_void());
            assert!(
                two.here.inner.serves(&two.diff_id()),
                "it ends like any other"
            );
            let profile = two.here.inner.layers.profile(&two.diff_id());
            assert!(
                !profile.is_empty(),
                "the next start knows what is read first"
            );
        }
    });
}

/// Its chunks are what its list says, and the list is another layer's: the truth comes out at the end.
#[test]
fn a_lie_ends_those_who_read_it_and_not_the_image() {
    install_tls();
    runtime().block_on(async {
        let two = Two::new(&[(Fault::OtherList, true), (Fault::None, false)]).await;
        two.listen();
        let told = two.company().told(&two.diff_id()).await.unwrap();
        assert_eq!(told.author, NodeId(1));
        let arrival = two.begin(told);
        two.here.inner.books().begin_use(Use {
            instance: "/nowhere/i".into(),
            digest: two.image.pin.digest.clone(),
            layers: two.image.layers.clone(),
        });
        let reader = two.reader(&arrival);
        let (pin, config) = two.nowhere();
        let mut given_up = two.here.broken(8);
        two.here.pull(&pin, &config, None).await.unwrap();
        assert!(arrival.is_void());
        assert!(
            two.unpacked() == noise(4, SIZE),
            "the image is the true one"
        );
        let broken = timeout(PATIENCE, given_up.recv()).await.unwrap();
        assert_eq!(broken.as_deref(), Some(Path::new("/nowhere/i")));
        assert!(
            read(&reader).await.is_none(),
            "nothing more is read of a lie"
        );
    });
}

/// Every chunk is right, but the headers that came beside them are another layer's.
#[test]
fn a_recipe_of_another_tree_is_found_out() {
    install_tls();
    runtime().block_on(async {
        let two = Two::new(&[(Fault::None, true)]).await;
        let mut told = two.company().told(&two.diff_id()).await.unwrap();
        let other: Digest = two.others[1].parse().unwrap();
        told.recipe = two.there.inner.layers.recipe(&other).unwrap().unwrap();
        let arrival = two.begin(told);
        let (pin, config) = two.nowhere();
        two.here.pull(&pin, &config, None).await.unwrap();
        assert!(arrival.is_void());
        assert!(two.unpacked() == noise(4, SIZE));
    });
}

#[test]
fn with_nobody_to_give_it_a_reader_is_told() {
    install_tls();
    runtime().block_on(async {
        let two = Two::new(&[(Fault::None, true)]).await;
        two.listen();
        let told = two.company().told(&two.diff_id()).await.unwrap();
        let arrival = two.begin(told);
        let reader = two.reader(&arrival);
        two.there.remove(&two.image.pin.digest).await.unwrap();
        let (pin, config) = two.nowhere();
        let bringing = start::bring(two.here.clone(), pin, Arc::new(config));
        let (read, ()) = tokio::join!(read(&reader), bringing);
        assert!(read.is_none());
    });
}

/// On the disk it is counted as far as it came, and what is due has its place; nothing takes it away.
#[test]
fn what_arrives_counts_and_stays() {
    install_tls();
    runtime().block_on(async {
        let two = Two::new(&[(Fault::None, true)]).await;
        let told = two.company().told(&two.diff_id()).await.unwrap();
        let raw = layer('f', 1);
        let arrival = two.begin(told);
        let (inner, list) = (&two.here.inner, &arrival.arriving.list);
        let mut came = 0;
        for (place, chunk) in list.chunks.iter().enumerate().step_by(2) {
            let at = usize::try_from(chunk.offset).unwrap();
            let bytes = &raw[at..at + chunk.len as usize];
            assert!(arrival.arriving.put(place, bytes).unwrap());
            came += u64::from(chunk.len);
            let weight = inner.coming().weight(&inner.layers);
            assert_eq!((weight.here, inner.stored().unwrap()), (came, came));
            assert_eq!(
                weight.due,
                list.raw - came + list.raw,
                "the rest, and the tree"
            );
        }
        let removed = two.here.prune(Prune::All, false).await.unwrap();
        assert_eq!(removed.bytes, 0);
        assert!(arrival.folder().exists() && arrival.arriving.bytes() == came);

        let (pin, config) = two.nowhere();
        two.here.pull(&pin, &config, None).await.unwrap();
        let weight = inner.coming().weight(&inner.layers);
        assert_eq!(
            (weight.here, weight.due),
            (list.raw, 0),
            "its readers have it still"
        );
        assert_eq!(inner.stored().unwrap(), 2 * list.raw);
    });
}

/// A start reads what is here before it runs; what is not here yet is no damage.
#[test]
fn what_arrives_is_not_taken_for_damaged() {
    install_tls();
    runtime().block_on(async {
        let two = Two::new(&[(Fault::None, true)]).await;
        assert!(two.here.verified(&two.image).await.is_err());
        let told = two.company().told(&two.diff_id()).await.unwrap();
        let _arrival = two.begin(told);
        let digest = two.image.digest().unwrap();
        two.here
            .inner
            .coming()
            .enter(&digest, Arc::clone(&two.image));
        two.here.verified(&two.image).await.unwrap();
        let (pin, config) = two.nowhere();
        two.here.pull(&pin, &config, None).await.unwrap();
        two.here.inner.coming().forget(&digest);
        two.here.verified(&two.image).await.unwrap();
    });
}

/// An instance that starts early sees the directories as one that starts late.
#[test]
fn what_layers_imply_is_known_before_they_are_here() {
    install_tls();
    runtime().block_on(async {
        let dirs = [temp(), temp()];
        let (there, here) = (open_store(&dirs[0]), open_store(&dirs[1]));
        let base = Tar::default().dir("a").dir("a/b").file("c", "x");
        let top = Tar::default().file("a/b/f", "x").file(".wh.c", "");
        let mut diff_ids = Vec::new();
        for (tar, name) in [(base, NAME), (top, "peers.test/top:1")] {
            let image = import(&there, tar.end(), name).await;
            let diff_id: Digest = image.layers[0].parse().unwrap();
            let layers = &there.inner.layers;
            let told = Told {
                author: NodeId(1),
                list: layers.chunk_list(&diff_id).unwrap().unwrap(),
                recipe: layers.recipe(&diff_id).unwrap().unwrap(),
                profile: Vec::new(),
            };
            let coming = dirs[1].path().join("images/coming");
            let budget = Budget::new(Limits::default());
            let arrival = Arrival::begin(&coming, &diff_id, told, &budget).unwrap();
            here.inner.coming().add_layer(arrival);
            diff_ids.push(diff_id);
        }
        let found = |store: &Store| {
            let folders = implied::layer(&store.inner, &diff_ids).unwrap();
            folders.expect("two directories").plan.diff_id
        };
        assert_eq!(found(&here), found(&there));
    });
}

/// What a daemon before this one brought is found again, and only the rest is fetched.
#[test]
fn an_arrival_goes_on_where_it_was_left() {
    install_tls();
    runtime().block_on(async {
        let two = Two::new(&[(Fault::None, true)]).await;
        let told = two.company().told(&two.diff_id()).await.unwrap();
        let folder = {
            let arrival = two.begin(told);
            let raw = layer('f', 1);
            for (place, chunk) in arrival.arriving.list.chunks.iter().enumerate().skip(5) {
                let at = usize::try_from(chunk.offset).unwrap();
                let bytes = &raw[at..at + chunk.len as usize];
                assert!(arrival.arriving.put(place, bytes).unwrap());
            }
            arrival.folder().parent().unwrap().to_owned()
        };
        let budget = Budget::new(Limits::default());
        let again = Arrival::reopen(&folder, &two.diff_id(), &budget).unwrap();
        let left = again.arriving.take(super::arriving::Pick::Any, u64::MAX);
        assert_eq!(left, [0, 1, 2, 3, 4]);
        again.arriving.give_back(&left);
        two.here.inner.coming().add_layer(again);
        let pin = &two.image.pin;
        let config = impatient();
        two.here.pull(pin, &config, None).await.unwrap();
        assert!(two.unpacked() == noise(4, SIZE));
    });
}
