//! What is said at the socket, by real connections.

use scheduler::converge::Froze;
use scheduler::model::{Name, Protocol, RevisionKey};
use tokio::io::AsyncReadExt;

use super::*;

#[test]
fn lines_are_read_strictly() {
    let busy = |seconds, what: &str| {
        Ok(Ask::Busy {
            seconds,
            what: what.to_owned(),
        })
    };
    assert_eq!(parse(b"busy"), busy(60, ""));
    assert_eq!(parse(b"busy 3600\r"), busy(3600, ""));
    assert_eq!(parse(b"busy 5 nightly index "), busy(5, "nightly index"));
    assert_eq!(parse(b"free"), Ok(Ask::Free));
    let wrong: [&[u8]; 9] = [
        b"",
        b"BUSY",
        b"free now",
        b"busy 0",
        b"busy 3601",
        b"busy +5",
        b"busy -1",
        b"busy \xff",
        b"busy 5 a\tb",
    ];
    for line in wrong {
        assert!(parse(line).is_err(), "{line:?}");
    }
    let long = format!("busy 5 {}", "x".repeat(WHAT_CHARS + 1));
    assert!(parse(long.as_bytes()).is_err());
}

/// Freezes nothing, and says that it did.
#[derive(Debug)]
struct Still;

#[async_trait::async_trait]
impl netfabric::ingress::Freezer for Still {
    async fn freeze(&self, _: &InstanceId) -> io::Result<()> {
        Ok(())
    }

    async fn thaw(&self, _: &InstanceId) -> io::Result<()> {
        Ok(())
    }
}

struct World {
    _folder: tempfile::TempDir,
    local: Arc<Local>,
    leases: Leases,
    id: InstanceId,
    socket: PathBuf,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let local = Local::new();
        local.set_freezer(Arc::new(Still));
        let (id, leases) = (InstanceId("a".into()), Leases::new(local.clone()));
        let dir = folder.path().join("instances/a");
        let mount = leases.open(&id, &dir).unwrap();
        Self {
            socket: mount.source.join(NAME),
            _folder: folder,
            local,
            leases,
            id,
        }
    }

    fn ready(&self) {
        let revision = RevisionKey {
            namespace: Name::default_namespace(),
            name: Name::new("web-00001").unwrap(),
        };
        let addr = "127.0.0.1:9".parse().unwrap();
        let id = self.id.clone();
        self.local
            .open(id, revision, addr, Protocol::Http1, 0, false);
    }

    async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let end = Instant::now() + Duration::from_secs(30);
        while !holds(self) {
            assert!(Instant::now() < end, "waited too long for: {what}");
            sleep(Duration::from_millis(5)).await;
        }
    }

    async fn call(&self, lines: &[&str]) -> (UnixStream, String) {
        let mut stream = UnixStream::connect(&self.socket).await.unwrap();
        let mut said = String::new();
        for line in lines {
            stream.write_all(line.as_bytes()).await.unwrap();
            let mut answer = [0; 200];
            let read = timeout(PATIENCE, stream.read(&mut answer)).await;
            let read = read.unwrap().unwrap_or(0);
            said.push_str(&String::from_utf8_lossy(&answer[..read]));
        }
        (stream, said)
    }
}

#[tokio::test]
async fn a_lease_keeps_awake_until_it_is_given_up_or_its_holder_goes() {
    let world = World::new();
    world.ready();
    assert_eq!(world.local.freeze(&world.id).await, Froze::Still);
    let (holder, said) = world.call(&["busy 600 index\n"]).await;
    assert_eq!(said, "ok 600\n");
    assert!(!world.local.is_held(&world.id), "thawed before it is told");
    assert_eq!(world.local.freeze(&world.id).await, Froze::Busy);
    assert_eq!(world.local.idle_millis(&world.id), None);
    let held = world.leases.held(&world.id);
    assert!(
        held[0].what == "index" && held[0].seconds_left > 590,
        "{held:?}"
    );
    let (_second, said) = world.call(&["busy 1\n", "busy 900\n", "free\n"]).await;
    assert_eq!(said, "ok 1\nok 900\nok\n");
    assert_eq!(world.leases.count(&world.id), 1, "the other one's");
    drop(holder);
    world.until("it went", |w| w.leases.count(&w.id) == 0).await;
    world
        .until("it may sleep", |w| w.local.idle_millis(&w.id).is_some())
        .await;
    assert_eq!(world.local.freeze(&world.id).await, Froze::Still);
}

#[tokio::test]
async fn a_lease_ends_with_its_time_and_holds_from_when_requests_may_enter() {
    let world = World::new();
    let (_holder, said) = world.call(&["busy 3\n"]).await;
    assert_eq!(
        (said.as_str(), world.leases.count(&world.id)),
        ("ok 3\n", 1)
    );
    world.ready();
    world
        .until("it is kept", |w| w.local.idle_millis(&w.id).is_none())
        .await;
    world
        .until("it is over", |w| w.leases.count(&w.id) == 0)
        .await;
    world
        .until("it may sleep", |w| w.local.idle_millis(&w.id).is_some())
        .await;
}

#[tokio::test]
async fn nonsense_is_answered_floods_are_cut_off_and_places_are_bounded() {
    let world = World::new();
    let (_open, said) = world.call(&["hello\n", "busy 99999\n", "busy 5\n"]).await;
    let answers: Vec<&str> = said.lines().map(|l| &l[..2]).collect();
    assert_eq!(answers, ["er", "er", "ok"], "{said}");
    // Without an end.
    let (_flood, said) = world.call(&[&"x".repeat(LINE_BYTES + 1)]).await;
    assert_eq!(said, "", "closed without a word");
    let mut held = Vec::new();
    for _ in 0..CONNECTIONS - 1 {
        held.push(world.call(&["busy 600\n"]).await.0);
    }
    let mut late = UnixStream::connect(&world.socket).await.unwrap();
    late.write_all(b"busy 600\n").await.unwrap();
    let answered = timeout(Duration::from_millis(300), late.readable()).await;
    assert!(answered.is_err(), "all places are taken");
    drop(held.pop());
    timeout(PATIENCE, late.readable()).await.unwrap().unwrap();
}
