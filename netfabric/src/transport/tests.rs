//! The transport between real endpoints on loopback.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use quinn::crypto::rustls::QuicClientConfig;
use scheduler::model::NodeId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout};

use super::testing::{Banned, Cluster, Doomed, Everyone, Fickle, PATIENCE, bind, eventually};
use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// Answers a number with its double and who asked.
fn serve_double(mesh: &Mesh) {
    mesh.serve_calls(
        Kind::Peer,
        |from: NodeId, n: u64| async move { (from, n * 2) },
    );
}

async fn double(mesh: &Mesh, to: u64, n: u64) -> Result<(NodeId, u64), TransportError> {
    mesh.call(NodeId(to), Kind::Peer, &n, PATIENCE).await
}

/// Sends back what comes.
pub(super) struct Echo;

#[async_trait]
impl Handler for Echo {
    async fn handle(&self, _: NodeId, mut stream: MeshStream) {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).await.unwrap();
        stream.write_all(&bytes).await.unwrap();
        stream.shutdown().await.unwrap();
    }
}

/// Takes a stream and keeps it, without a word.
struct Silent;

#[async_trait]
impl Handler for Silent {
    async fn handle(&self, _: NodeId, stream: MeshStream) {
        std::future::pending::<()>().await;
        drop(stream);
    }
}

fn links(mesh: &Mesh, node: u64) -> usize {
    lock(&mesh.inner.pool).links_with(NodeId(node))
}

#[tokio::test]
async fn calls_go_both_ways_over_one_connection() {
    let cluster = Cluster::found();
    let (one, two) = (cluster.mesh(1), cluster.mesh(2));
    serve_double(&one);
    serve_double(&two);
    assert!(matches!(
        double(&one, 2, 1).await,
        Err(TransportError::UnknownAddress(NodeId(2)))
    ));
    one.set_addr(NodeId(2), two.local_addr());
    assert_eq!(double(&one, 2, 21).await.unwrap(), (NodeId(1), 42));
    // Two was never told where one is: it uses the connection that came.
    assert_eq!(double(&two, 1, 5).await.unwrap(), (NodeId(2), 10));
    assert_eq!((links(&one, 2), links(&two, 1)), (1, 1));
    assert_eq!(one.connected(), [NodeId(2)]);
    assert!(one.rtt(NodeId(2)).unwrap() < SECOND);
    assert_eq!(one.rtt(NodeId(3)), None);
    let trips = one.round_trips();
    assert_eq!(
        trips.iter().map(|t| t.node).collect::<Vec<_>>(),
        [NodeId(2)]
    );
    assert!(trips[0].rtt < SECOND && trips[0].received > 0, "{trips:?}");
    two.close().await;
    eventually("the goodbye is heard", || one.connected().is_empty()).await;
    one.close().await;
}

#[tokio::test]
async fn a_node_can_call_itself() {
    let one = Cluster::found().mesh(1);
    serve_double(&one);
    one.set_addr(NodeId(1), one.local_addr());
    assert_eq!(double(&one, 1, 2).await.unwrap(), (NodeId(1), 4));
    one.close().await;
}

#[tokio::test]
async fn a_megabyte_goes_both_ways() {
    let cluster = Cluster::found();
    let (one, two) = (cluster.mesh(1), cluster.mesh(2));
    two.serve(Kind::Proxy, Arc::new(Echo));
    let bytes: Vec<u8> = (0..1024 * 1024).map(|n: u32| n.to_le_bytes()[1]).collect();
    let stream = one
        .open_addr(two.local_addr(), Kind::Proxy, PATIENCE)
        .await
        .unwrap();
    assert_eq!((stream.peer(), stream.kind()), (NodeId(2), Kind::Proxy));
    let (mut read, mut write) = tokio::io::split(stream);
    let send = async {
        write.write_all(&bytes).await.unwrap();
        write.shutdown().await.unwrap();
    };
    let mut back = Vec::new();
    let ((), result) = timeout(PATIENCE, async {
        tokio::join!(send, read.read_to_end(&mut back))
    })
    .await
    .unwrap();
    result.unwrap();
    assert!(back == bytes);
    one.close().await;
    two.close().await;
}

#[tokio::test]
async fn a_node_of_another_cluster_is_refused() {
    let (ours, theirs) = (Cluster::found(), Cluster::found());
    let (one, stranger) = (ours.mesh(1), theirs.mesh(2));
    serve_double(&one);
    stranger.set_addr(NodeId(1), one.local_addr());
    let error = double(&stranger, 1, 1).await.unwrap_err();
    assert!(matches!(error, TransportError::Connect { .. }), "{error}");
    assert!(one.connected().is_empty());
    one.close().await;
    stranger.close().await;
}

#[tokio::test]
async fn no_certificate_no_mesh() {
    let cluster = Cluster::found();
    let one = cluster.mesh(1);
    serve_double(&one);
    // Trusts the cluster, speaks the mesh protocol, shows nothing.
    let hash = cluster.authority.ca_hash();
    let mut tls = crate::identity::join_client_config(&hash).unwrap();
    tls.alpn_protocols = vec![crate::identity::ALPN_MESH.to_vec()];
    let client = QuicClientConfig::try_from(tls).unwrap();
    let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let config = quinn::ClientConfig::new(Arc::new(client));
    let conn = endpoint
        .connect_with(config, one.local_addr(), crate::identity::MESH_NAME)
        .unwrap()
        .await
        .unwrap();
    let reason = timeout(PATIENCE, conn.closed()).await.unwrap();
    let quinn::ConnectionError::ApplicationClosed(close) = reason else {
        panic!("{reason}")
    };
    assert_eq!(close.error_code, code::NOT_ADMITTED);
    assert!(one.connected().is_empty());
    one.close().await;
}

#[track_caller]
fn is_kept_out(error: &TransportError) {
    let kept_out = matches!(error, TransportError::NotAdmitted { .. });
    assert!(kept_out, "{error}");
}

#[tokio::test]
async fn a_revoked_node_is_cut_off_and_kept_out() {
    let cluster = Cluster::found();
    let banned = Arc::new(Banned::default());
    let listen = "127.0.0.1:0".parse().unwrap();
    let one = Mesh::bind(listen, cluster.identity(1), banned.clone()).unwrap();
    let two = cluster.mesh(2);
    serve_double(&one);
    serve_double(&two);
    two.set_addr(NodeId(1), one.local_addr());
    double(&two, 1, 1).await.unwrap();
    lock(&banned.0).insert(NodeId(2));
    one.disconnect(NodeId(2));
    eventually("the connection ends", || two.connected().is_empty()).await;
    is_kept_out(&double(&two, 1, 1).await.unwrap_err());
    // Nor is it dialled.
    one.set_addr(NodeId(2), two.local_addr());
    is_kept_out(&double(&one, 2, 1).await.unwrap_err());
    one.close().await;
    two.close().await;
}

#[tokio::test]
async fn who_is_revoked_while_it_is_dialled_is_cut_off() {
    let cluster = Cluster::found();
    let listen = "127.0.0.1:0".parse().unwrap();
    let fickle = |node| Mesh::bind(listen, cluster.identity(node), Fickle::after(1)).unwrap();
    for (one, two) in [(fickle(1), cluster.mesh(2)), (cluster.mesh(1), fickle(2))] {
        serve_double(&two);
        one.set_addr(NodeId(2), two.local_addr());
        double(&one, 2, 1).await.unwrap_err();
        eventually("nothing is left of it", || {
            one.connected().is_empty() && two.connected().is_empty()
        })
        .await;
        is_kept_out(&double(&one, 2, 1).await.unwrap_err());
        one.close().await;
        two.close().await;
    }
}

#[tokio::test]
async fn deadlines_hold_and_a_slow_peer_is_no_dead_peer() {
    let cluster = Cluster::found();
    let (one, two) = (cluster.mesh(1), cluster.mesh(2));
    two.serve(Kind::Raft, Arc::new(Silent));
    serve_double(&two);
    one.set_addr(NodeId(2), two.local_addr());
    double(&one, 2, 1).await.unwrap();
    let begun = Instant::now();
    let patience = Duration::from_millis(400);
    let error = one
        .call::<_, u64>(NodeId(2), Kind::Raft, &1u64, patience)
        .await
        .unwrap_err();
    assert!(matches!(error, TransportError::Deadline(_)), "{error}");
    assert!(begun.elapsed() < SECOND * 5);
    double(&one, 2, 1).await.unwrap();
    assert_eq!(links(&one, 2), 1, "no second connection was made");
    one.close().await;
    two.close().await;
}

#[tokio::test]
async fn what_cannot_be_served_is_said() {
    let cluster = Cluster::found();
    let (one, two) = (cluster.mesh(1), cluster.mesh(2));
    one.set_addr(NodeId(2), two.local_addr());
    let error = double(&one, 2, 1).await.unwrap_err();
    assert!(
        matches!(error, TransportError::Unserved(Kind::Peer)),
        "{error}"
    );
    serve_double(&two);
    let words = "not a number, and too long for one";
    let error = one
        .call::<_, u64>(NodeId(2), Kind::Peer, words, PATIENCE)
        .await
        .unwrap_err();
    assert!(matches!(error, TransportError::Malformed), "{error}");
    let big = vec![0u8; Kind::Peer.frame_limit()];
    let error = one
        .call::<_, u64>(NodeId(2), Kind::Peer, &big, PATIENCE)
        .await
        .unwrap_err();
    assert!(matches!(error, TransportError::Frame(_)), "{error}");
    double(&one, 2, 1).await.unwrap();
    one.close().await;
    two.close().await;
}

#[tokio::test]
async fn the_wrong_node_at_an_address_is_an_error() {
    let cluster = Cluster::found();
    let (one, two) = (cluster.mesh(1), cluster.mesh(2));
    serve_double(&two);
    one.set_addr(NodeId(3), two.local_addr());
    let error = double(&one, 3, 1).await.unwrap_err();
    let TransportError::WrongPeer { wanted, found, .. } = error else {
        panic!("{error}")
    };
    assert_eq!((wanted, found), (NodeId(3), NodeId(2)));
    one.close().await;
    two.close().await;
}

#[tokio::test]
async fn a_herd_dials_once() {
    let cluster = Cluster::found();
    let (one, two) = (cluster.mesh(1), cluster.mesh(2));
    serve_double(&two);
    one.set_addr(NodeId(2), two.local_addr());
    let calls = (0..100).map(|n| {
        let one = one.clone();
        async move { assert_eq!(double(&one, 2, n).await.unwrap().1, n * 2) }
    });
    futures::future::join_all(calls).await;
    assert_eq!((links(&one, 2), links(&two, 1)), (1, 1));
    one.close().await;
    two.close().await;
}

#[tokio::test]
async fn both_may_dial_at_once() {
    let cluster = Cluster::found();
    let (one, two) = (cluster.mesh(1), cluster.mesh(2));
    serve_double(&one);
    serve_double(&two);
    one.set_addr(NodeId(2), two.local_addr());
    two.set_addr(NodeId(1), one.local_addr());
    for n in 0..20 {
        let (a, b) = tokio::join!(double(&one, 2, n), double(&two, 1, n));
        assert_eq!((a.unwrap().1, b.unwrap().1), (n * 2, n * 2));
    }
    assert!(links(&one, 2) <= 2);
    one.close().await;
    two.close().await;
}

#[tokio::test]
async fn a_killed_peer_fails_in_time_and_is_found_again_after_its_restart() {
    let cluster = Cluster::found();
    let one = cluster.mesh(1);
    let identity = cluster.identity(2);
    let two = Doomed::start("127.0.0.1:0", identity.clone());
    serve_double(two.mesh());
    one.set_addr(NodeId(2), two.addr);
    double(&one, 2, 1).await.unwrap();
    let addr = two.kill().await;

    let begun = Instant::now();
    let call = one
        .call::<_, (NodeId, u64)>(NodeId(2), Kind::Peer, &1u64, SECOND)
        .await;
    assert!(call.is_err());
    // The silence raised doubts: now it is dialled, in vain, and then fails without waiting.
    let mut error = double(&one, 2, 1).await.unwrap_err();
    if matches!(error, TransportError::Lost(_)) {
        // The dead one's last acknowledgement came when the first call had begun already.
        error = double(&one, 2, 1).await.unwrap_err();
    }
    assert!(
        matches!(error, TransportError::Unreachable { .. }),
        "{error}"
    );
    assert!(
        begun.elapsed() < SECOND + DIAL_DEADLINE + SECOND * 3,
        "{:?}",
        begun.elapsed()
    );
    let again = Instant::now();
    double(&one, 2, 1).await.unwrap_err();
    assert!(again.elapsed() < SECOND / 2, "{:?}", again.elapsed());

    let two = Doomed::start(&addr.to_string(), identity);
    serve_double(two.mesh());
    let back = Instant::now();
    while double(&one, 2, 1).await.is_err() {
        assert!(back.elapsed() < SECOND * 6, "never came back");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    two.kill().await;
    one.close().await;
}

/// A request that was handed to a peer hangs when the peer is killed: the stream must end long
/// before the connection's idle timeout.
#[tokio::test]
async fn streams_to_a_killed_peer_end() {
    let cluster = Cluster::found();
    let one = cluster.mesh(1);
    let two = Doomed::start("127.0.0.1:0", cluster.identity(2));
    two.mesh().serve(Kind::Proxy, Arc::new(Silent));
    one.set_addr(NodeId(2), two.addr);
    let mut stream = one.open(NodeId(2), Kind::Proxy, PATIENCE).await.unwrap();
    stream.write_all(b"taken").await.unwrap();
    two.kill().await;
    stream.write_all(b"lost").await.unwrap();
    let read = tokio::time::timeout(SECOND * 8, stream.read_u8()).await;
    assert!(read.expect("the stream ended").is_err());
    one.close().await;
}

#[tokio::test]
async fn who_answers_and_who_does_not() {
    let cluster = Cluster::found();
    let one = bind("127.0.0.1:0", cluster.identity(1));
    let two = Doomed::start("127.0.0.1:0", cluster.identity(2));
    one.set_addr(NodeId(2), two.mesh().local_addr());
    assert!(
        one.answers(NodeId(2), PATIENCE).await,
        "over a new connection"
    );
    assert_eq!(links(&one, 2), 1);
    assert!(
        one.answers(NodeId(2), PATIENCE).await,
        "over the one there is"
    );
    assert!(
        !one.answers(NodeId(3), SECOND / 10).await,
        "nobody knows it"
    );
    let mut silences = one.silences();
    two.kill().await;
    assert!(!one.answers(NodeId(2), SECOND).await);
    let silent = timeout(PATIENCE, silences.recv()).await;
    assert_eq!(silent.unwrap().unwrap(), NodeId(2));
    one.close().await;
}

#[tokio::test]
async fn a_quick_restart_is_noticed_by_a_reset() {
    let cluster = Cluster::found();
    let one = cluster.mesh(1);
    let identity = cluster.identity(2);
    let two = Doomed::start("127.0.0.1:0", identity.clone());
    serve_double(two.mesh());
    one.set_addr(NodeId(2), two.addr);
    double(&one, 2, 1).await.unwrap();
    let addr = two.kill().await;
    let two = Doomed::start(&addr.to_string(), identity);
    serve_double(two.mesh());
    let begun = Instant::now();
    // The first word on the old connection is answered with a reset; the next call dials.
    let _ = one
        .call::<_, (NodeId, u64)>(NodeId(2), Kind::Peer, &1u64, SECOND * 5)
        .await;
    double(&one, 2, 1).await.unwrap();
    assert!(begun.elapsed() < SECOND * 4, "{:?}", begun.elapsed());
    two.kill().await;
    one.close().await;
}

#[tokio::test]
async fn one_port_serves_both_families() {
    let cluster = Cluster::found();
    let one = bind("[::]:0", cluster.identity(1));
    serve_double(&one);
    let port = one.local_addr().port();
    for (node, listen, target) in [
        (2, "127.0.0.1:0", "127.0.0.1"),
        (3, "[::]:0", "[::ffff:127.0.0.1]"),
    ] {
        let mesh = bind(listen, cluster.identity(node));
        mesh.set_addr(NodeId(1), format!("{target}:{port}").parse().unwrap());
        assert_eq!(
            mesh.addr(NodeId(1)).unwrap(),
            format!("127.0.0.1:{port}").parse().unwrap()
        );
        assert_eq!(double(&mesh, 1, 4).await.unwrap(), (NodeId(node), 8));
        let stream = mesh.open(NodeId(1), Kind::Peer, PATIENCE).await.unwrap();
        assert!(stream.remote_addr().is_ipv4());
        mesh.close().await;
    }
    one.close().await;
}

#[tokio::test]
async fn a_taken_port_is_said() {
    let cluster = Cluster::found();
    let one = cluster.mesh(1);
    let error = Mesh::bind(one.local_addr(), cluster.identity(2), Arc::new(Everyone)).unwrap_err();
    assert!(matches!(error, TransportError::Bind { .. }), "{error}");
    one.close().await;
}

#[tokio::test]
async fn an_aborted_stream_is_no_clean_end() {
    struct Half(AtomicUsize);
    #[async_trait]
    impl Handler for Half {
        async fn handle(&self, _: NodeId, mut stream: MeshStream) {
            self.0.fetch_add(1, Ordering::SeqCst);
            stream.write_all(b"half").await.unwrap();
            stream.abort();
        }
    }
    let cluster = Cluster::found();
    let (one, two) = (cluster.mesh(1), cluster.mesh(2));
    let half = Arc::new(Half(AtomicUsize::new(0)));
    two.serve(Kind::Logs, half.clone());
    let mut stream = one
        .open_addr(two.local_addr(), Kind::Logs, PATIENCE)
        .await
        .unwrap();
    let mut all = Vec::new();
    let result = timeout(PATIENCE, stream.read_to_end(&mut all))
        .await
        .unwrap();
    assert!(result.is_err());
    assert_eq!(half.0.load(Ordering::SeqCst), 1);
    one.close().await;
    two.close().await;
}
