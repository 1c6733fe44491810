//! Pulls from a registry of faults: the right bytes, or an error that says what is wrong; and not
//! many more bytes than the image has.

use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::faulty::{Asked, Fault, Faulty, Plan};
use super::testing::{Hub, Layout, impatient, install_tls, open_store, temp};
use super::{Image, ImageError, Reference, RegistryConfig};

/// Incompressible bytes of one file.
const NOISE: u32 = 10_000;

fn noise(seed: u32) -> Vec<u8> {
    let words = (seed..seed + NOISE).map(|n| n.wrapping_mul(2_654_435_761).rotate_left(n % 31));
    words.flat_map(u32::to_le_bytes).collect()
}

/// A real registry with an image `app:1` of two small layers.
struct Real {
    hub: Hub,
    /// Digests of the packed layers.
    layers: Vec<String>,
    config: String,
    /// Bytes of all that a pull needs.
    bytes: u64,
}

impl Real {
    fn start() -> Self {
        install_tls();
        let (hub, write) = (Hub::start(), |name: &'static str, seed| {
            move |root: &Path| std::fs::write(root.join(name), noise(seed)).unwrap()
        });
        let layout = Layout::new(&[&write("one", 1), &write("two", 1_000_000)]);
        hub.push(&layout, "app:1", &[]);
        let manifest = hub.manifest("app", "1");
        let told: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
        let digest = |part: &serde_json::Value| part["digest"].as_str().unwrap().to_owned();
        let layers: Vec<_> = told["layers"].as_array().unwrap().iter().collect();
        let sizes = layers.iter().copied().chain([&told["config"]]);
        let sizes = sizes.map(|part| part["size"].as_u64().unwrap());
        Self {
            bytes: sizes.sum::<u64>() + 2 * manifest.len() as u64,
            layers: layers.into_iter().map(digest).collect(),
            config: digest(&told["config"]),
            hub,
        }
    }

    async fn spoilt(&self, plan: impl Fn(&Asked) -> Fault + Send + Sync + 'static) -> Faulty {
        Faulty::before(self.hub.address, plan).await
    }
}

/// Pulls `app:1` into a store of its own and looks at what came.
async fn pull(at: &Faulty, config: &RegistryConfig) -> Result<(), ImageError> {
    let dir = temp();
    let store = open_store(&dir);
    let reference = Reference::parse(&format!("{}/app:1", at.address)).unwrap();
    let pulled = store.pull_reference(&reference, config, None).await;
    let layers = dir.path().join("images/layers");
    match pulled {
        Ok(image) => {
            holds(&layers, &image);
            Ok(())
        }
        Err(error) => {
            let kept = std::fs::read_dir(&layers)
                .unwrap()
                .map(|e| e.unwrap().file_name());
            let whole = kept.filter(|name| name.as_bytes().len() == 64).count();
            assert!(whole < 2, "after {error}");
            assert!(store.list().is_empty(), "after {error}");
            Err(error)
        }
    }
}

fn holds(layers: &Path, image: &Arc<Image>) {
    let read = |number: usize, name: &str| {
        let hex = image.layers[number].strip_prefix("sha256:").unwrap();
        std::fs::read(layers.join(hex).join("fs").join(name)).unwrap()
    };
    assert_eq!(read(0, "one"), noise(1));
    assert_eq!(read(1, "two"), noise(1_000_000));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_cut_at_any_kilobyte_costs_no_byte_twice() {
    let real = Real::start();
    let most = usize::try_from(real.bytes).unwrap() / 2 / 1024 + 2;
    assert!(most > 30, "{most}");
    for kilobyte in 0..most {
        // The first answer of every kind, as far as it is that long.
        let plan = move |asked: &Asked| match asked.number {
            0 => Fault::Cut(kilobyte * 1024),
            _ => Fault::None,
        };
        let faulty = real.spoilt(plan).await;
        let outcome = pull(&faulty, &impatient()).await;
        outcome.unwrap_or_else(|error| panic!("cut at {kilobyte} KiB: {error}"));
        // What was on its way when the connection broke may be lost with it.
        let (sent, bytes) = (faulty.sent(), real.bytes);
        assert!(
            sent <= bytes * 3 / 2,
            "cut at {kilobyte} KiB: {sent} of {bytes}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_cuts_every_connection_gives_the_image_all_the_same() {
    let real = Real::start();
    let layers = real.layers.clone();
    let plan = move |asked: &Asked| {
        if asked.is_layer(&layers) {
            Fault::CutBody(1024)
        } else {
            Fault::None
        }
    };
    let faulty = real.spoilt(plan).await;
    pull(&faulty, &impatient()).await.unwrap();
    assert!(faulty.sent() <= real.bytes * 3 / 2, "{}", faulty.sent());
    let layers = real.layers.clone();
    let ranges = faulty.asked().into_iter().filter(|a| a.is_layer(&layers));
    assert!(ranges.filter(|a| a.range.is_some()).count() > 60);
}

fn say(status: &'static str, fields: &[&str]) -> Fault {
    let fields = fields.iter().map(|&field| field.to_owned()).collect();
    Fault::Say(status, fields, "{}")
}

/// What a row of the table spoils.
#[derive(Clone, Copy)]
enum Where {
    Manifest,
    Config,
    Layers,
}

struct Row {
    name: &'static str,
    place: Where,
    fault: Fault,
    /// How many requests of one path are answered so.
    times: usize,
    /// Words of the error; `None` when the image comes all the same.
    error: Option<&'static str>,
    /// How often what is spoilt is asked for at most.
    most: usize,
}

fn right(name: &'static str, place: Where, fault: Fault, times: usize, most: usize) -> Row {
    let error = None;
    Row {
        name,
        place,
        fault,
        times,
        error,
        most,
    }
}

/// Spoilt whenever it is asked for.
fn wrong(name: &'static str, place: Where, fault: Fault, words: &'static str, most: usize) -> Row {
    let (times, error) = (usize::MAX, Some(words));
    Row {
        name,
        place,
        fault,
        times,
        error,
        most,
    }
}

fn around() -> Fault {
    say("307 Temporary Redirect", &["location: /v2/around"])
}

fn cuts() -> Vec<Row> {
    use Where::{Config, Layers, Manifest};
    let (cut, pause) = (Fault::CutBody(100), Duration::from_millis(3));
    vec![
        right("cut manifest", Manifest, cut.clone(), 2, 6),
        right("cut config", Config, cut.clone(), 2, 3),
        wrong("cut for ever", Config, cut, "cannot be reached", 4),
        right("no head", Config, Fault::Cut(0), 2, 3),
        right("half a head", Layers, Fault::Cut(20), 2, 6),
        right("short, unnoticed", Layers, Fault::Short(7000), 1, 4),
        right("slow", Layers, Fault::Slow(2048, pause), usize::MAX, 2),
        right("stalled once", Layers, Fault::Stall(3000), 1, 4),
        wrong("stalled", Config, Fault::Stall(10), "stood still", 4),
    ]
}

fn lies() -> Vec<Row> {
    use Where::{Config, Layers, Manifest};
    let (short, config) = (Fault::Short(100), "image configuration has digest");
    let page = Fault::Say("200 OK", Vec::new(), "<html>");
    vec![
        wrong("short config", Config, short, config, 1),
        wrong("other layer", Layers, Fault::Swap, "has digest", 2),
        wrong("other config", Config, Fault::Swap, config, 1),
        wrong("other manifest", Manifest, Fault::Swap, "has digest", 1),
        wrong("long layer", Layers, Fault::Long, "its descriptor says", 2),
        wrong("long config", Config, Fault::Long, "over the limit", 1),
        wrong("no manifest", Manifest, page, "cannot be read", 1),
    ]
}

fn refusals() -> Vec<Row> {
    use Where::{Config, Layers, Manifest};
    let later = say("503 Service Unavailable", &[]);
    let soon = say("429 Too Many Requests", &["retry-after: 0"]);
    let never = say("429 Too Many Requests", &["retry-after: 3600"]);
    let secrets = "location: http://169.254.169.254/latest";
    let metadata = say("307 Temporary Redirect", &[secrets]);
    let closed = say("401 Unauthorized", &[]);
    vec![
        right("429, soon", Layers, soon.clone(), 2, 6),
        wrong("429, late", Manifest, never, "left alone for 3600 s", 1),
        wrong("429, always", Config, soon, "429 Too Many Requests", 4),
        right("503, twice", Config, later.clone(), 2, 3),
        wrong("503, always", Manifest, later, "503 Service Unavailable", 4),
        wrong("in circles", Config, around(), "redirects without end", 1),
        wrong(
            "metadata",
            Layers,
            metadata,
            "sends us where it must not",
            2,
        ),
        wrong("closed", Manifest, closed, "refuses access", 1),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_fault_ends_in_the_right_bytes_or_a_clear_error() {
    let real = Real::start();
    for row in cuts().into_iter().chain(lies()).chain(refusals()) {
        let Row {
            name,
            place,
            fault,
            times,
            error,
            most,
        } = row;
        let (layers, config) = (real.layers.clone(), real.config.clone());
        let is_it = move |asked: &Asked| match place {
            Where::Manifest => asked.path.contains("/manifests/"),
            Where::Config => asked.path.contains(&config),
            Where::Layers => asked.is_layer(&layers),
        };
        let spoils = is_it.clone();
        let plan = move |asked: &Asked| match asked.path.as_str() {
            "/v2/around" => around(),
            _ if spoils(asked) && asked.number < times => fault.clone(),
            _ => Fault::None,
        };
        let faulty = real.spoilt(plan).await;
        match (pull(&faulty, &impatient()).await, error) {
            (Ok(()), None) => {}
            (Err(error), Some(words)) => {
                assert!(error.to_string().contains(words), "{name}: {error}");
            }
            (outcome, _) => panic!("{name}: {outcome:?}"),
        }
        let asked = faulty.asked().into_iter().filter(is_it).count();
        assert!((1..=most).contains(&asked), "{name}: asked {asked} times");
        let (sent, bytes) = (faulty.sent(), real.bytes);
        assert!(sent <= bytes * 3 / 2, "{name}: {sent} of {bytes}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_token_serves_a_pull_and_a_new_one_replaces_it() {
    let real = Real::start();
    // The first token is good for so many requests, any other for all: it ends while nothing but the
    // configuration is asked for.
    for (good_for, tokens) in [(99, 1), (2, 2)] {
        let issued = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let used = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let (issuing, using) = (issued.clone(), used.clone());
        let plan = move |asked: &Asked| {
            use std::sync::atomic::Ordering::SeqCst;
            if asked.path.starts_with("/token") {
                issuing.fetch_add(1, SeqCst);
                using.store(0, SeqCst);
                return Fault::Say(
                    "200 OK",
                    Vec::new(),
                    r#"{"token":"t0k3n","expires_in":300}"#,
                );
            }
            let known = asked.authorization.as_deref() == Some("Bearer t0k3n");
            let most = match issuing.load(SeqCst) {
                1 => good_for,
                _ => usize::MAX,
            };
            if known && using.fetch_add(1, SeqCst) < most {
                return Fault::None;
            }
            // The realm is beside the registry, whatever its port.
            say(
                "401 Unauthorized",
                &[r#"www-authenticate: Bearer realm="http://REALM/token",scope="x""#],
            )
        };
        let faulty = real.spoilt(plan).await;
        let outcome = pull(&faulty, &impatient()).await;
        outcome.unwrap();
        let issued = issued.load(std::sync::atomic::Ordering::SeqCst);
        assert_eq!(issued, tokens, "good for {good_for}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mirror_is_asked_first_and_never_relied_on() {
    let real = Real::start();
    let own = real.hub.address.to_string();
    let layers = real.layers.clone();
    let cases: Vec<(&str, Arc<Plan>)> = vec![
        ("sound", Arc::new(|_: &Asked| Fault::None)),
        (
            "failing",
            Arc::new(|_: &Asked| say("500 Internal Server Error", &[])),
        ),
        ("empty", Arc::new(|_: &Asked| say("404 Not Found", &[]))),
        ("closed", Arc::new(|_: &Asked| say("401 Unauthorized", &[]))),
        ("lying", Arc::new(|_: &Asked| Fault::Swap)),
        (
            "breaking",
            Arc::new(
                move |asked: &Asked| match (asked.is_layer(&layers), asked.number) {
                    (true, 0) => Fault::CutBody(5000),
                    (true, _) => say("404 Not Found", &[]),
                    (false, _) => Fault::None,
                },
            ),
        ),
    ];
    for (name, plan) in cases {
        let mirror = real.spoilt(move |asked| plan(asked)).await;
        let mut config = impatient();
        config
            .set_mirrors(&own, &[mirror.address.to_string()])
            .unwrap();
        let dir = temp();
        let store = open_store(&dir);
        let reference = real.hub.name("app:1");
        let pulled = store.pull_reference(&reference, &config, None).await;
        let image = pulled.unwrap_or_else(|error| panic!("{name}: {error}"));
        holds(&dir.path().join("images/layers"), &image);
        assert_eq!(image.pin.reference, reference.name());
        let asked = mirror.asked();
        assert!(!asked.is_empty(), "{name}");
        for asked in asked {
            let port = real.hub.address.port();
            assert!(
                asked.path.ends_with(&format!("?ns=127.0.0.1%3A{port}")),
                "{asked:?}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tag_that_means_what_it_meant_is_not_fetched() {
    let real = Real::start();
    let faulty = real.spoilt(|_| Fault::None).await;
    let dir = temp();
    let store = open_store(&dir);
    let reference = Reference::parse(&format!("{}/app:1", faulty.address)).unwrap();
    let config = impatient();
    let image = store
        .pull_reference(&reference, &config, None)
        .await
        .unwrap();
    let before = faulty.sent();
    assert_eq!(store.resolve(&reference, &config).await.unwrap(), image.pin);
    assert_eq!(faulty.sent(), before, "a head has no body");
    assert_eq!(faulty.asked().last().unwrap().method, "HEAD");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pull_that_ended_early_goes_on_where_it_was() {
    install_tls();
    let large = || {
        let words = (0..400_000_u32).map(|n| n.wrapping_mul(2_654_435_761).rotate_left(n % 31));
        words.flat_map(u32::to_le_bytes).collect::<Vec<u8>>()
    };
    let hub = Hub::start();
    let layout =
        Layout::new(&[&|root: &Path| std::fs::write(root.join("large"), large()).unwrap()]);
    hub.push(&layout, "app:1", &[]);
    let told: serde_json::Value = serde_json::from_slice(&hub.manifest("app", "1")).unwrap();
    let layer = told["layers"][0]["digest"].as_str().unwrap().to_owned();
    let config = impatient();
    let is_layer = {
        let layers = [layer];
        move |asked: &Asked| asked.is_layer(&layers)
    };
    // What was kept is sound, or the disk has changed it since; how often the rest makes us ask.
    for (changed, requests) in [(false, 1), (true, 2)] {
        let dir = temp();
        let kept = dir.path().join("images/partial");
        let files = || {
            std::fs::read_dir(&kept)
                .unwrap()
                .map(|entry| entry.unwrap().path())
        };
        let spoils = is_layer.clone();
        let plan = move |asked: &Asked| match (spoils(asked), asked.number) {
            (true, 0) => Fault::CutBody(1_000_000),
            (true, _) => say("404 Not Found", &[]),
            (false, _) => Fault::None,
        };
        let faulty = Faulty::before(hub.address, plan).await;
        let name = |at: &Faulty| Reference::parse(&format!("{}/app:1", at.address)).unwrap();
        let store = open_store(&dir);
        let cut = store.pull_reference(&name(&faulty), &config, None).await;
        cut.unwrap_err();
        drop(store);
        let path = files().next().expect("what came is kept");
        let have = std::fs::metadata(&path).unwrap().len();
        assert!(have > 500_000, "{have}");
        if changed {
            std::fs::write(&path, vec![0; usize::try_from(have).unwrap()]).unwrap();
        }

        let sound = Faulty::before(hub.address, |_| Fault::None).await;
        let pulled = open_store(&dir)
            .pull_reference(&name(&sound), &config, None)
            .await;
        let image = pulled.unwrap();
        let hex = image.layers[0].strip_prefix("sha256:").unwrap();
        let tree = dir.path().join("images/layers").join(hex).join("fs");
        assert!(std::fs::read(tree.join("large")).unwrap() == large());
        let asked: Vec<_> = sound.asked().into_iter().filter(|a| is_layer(a)).collect();
        assert_eq!(asked.len(), requests);
        assert_eq!(asked[0].range, Some(format!("bytes={have}-")));
        assert_eq!(files().count(), 0);
    }
}
