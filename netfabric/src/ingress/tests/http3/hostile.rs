//! What clients may not do, and what they get for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use h3::error::Code;
use quinn::ConnectionError;
use tokio::net::UdpSocket;
use tokio::time::timeout;

use super::super::world::{Deployed, eventually};
use super::{Client, WEB, ask, client_config, door, quic, read, world};

const PATIENCE: Duration = Duration::from_secs(20);

/// A frame with a length of two bytes.
fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap() | 0x4000;
    [&[kind], &length.to_be_bytes()[..], payload].concat()
}

/// A head of literal fields.
fn head(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut section = vec![0, 0];
    for (name, value) in fields {
        // Lengths of names have three bits here, and a byte more where these do not do.
        match name.len() {
            short @ 0..7 => section.push(0x20 | u8::try_from(short).unwrap()),
            long => section.extend([0x27, u8::try_from(long - 7).unwrap()]),
        }
        section.extend_from_slice(name.as_bytes());
        section.push(u8::try_from(value.len()).unwrap());
        section.extend_from_slice(value.as_bytes());
    }
    frame(1, &section)
}

/// A head that a body follows.
fn post() -> Vec<u8> {
    head(&[(":method", "POST"), GET[1], GET[2], (":path", "/echo")])
}

const GET: [(&str, &str); 4] = [
    (":method", "GET"),
    (":scheme", "https"),
    (":authority", WEB),
    (":path", "/"),
];

/// What a connection is closed with after these streams, and whether it is.
async fn closed_with(quic: &quinn::Connection) -> Option<u64> {
    match timeout(PATIENCE, quic.closed()).await.unwrap() {
        ConnectionError::ApplicationClosed(close) => Some(close.error_code.into_inner()),
        _ => None,
    }
}

#[tokio::test]
async fn what_is_no_http3_closes_the_connection_and_says_why() {
    let (world, cert) = world(Deployed::default()).await;
    let app = world.run(1, "a").await;
    let settings = [&[0][..], &frame(4, b"")].concat();
    let one_way: &[(&[u8], Code)] = &[
        (
            &[&[0][..], &frame(0, b"data")].concat(),
            Code::H3_MISSING_SETTINGS,
        ),
        (
            &[&settings[..], &frame(4, b"")].concat(),
            Code::H3_FRAME_UNEXPECTED,
        ),
        (
            &[&settings[..], &frame(0, b"data")].concat(),
            Code::H3_FRAME_UNEXPECTED,
        ),
        (
            &[&settings[..], &frame(8, b"")].concat(),
            Code::H3_FRAME_UNEXPECTED,
        ),
        (
            &[&settings[..], &[0x4, 0x80]].concat(),
            Code::H3_FRAME_ERROR,
        ),
        (&[0, 4, 0xbf, 0xff, 0xff, 0xff], Code::H3_EXCESSIVE_LOAD),
        (&[0, 4, 4, 0x6, 1, 0x6, 1], Code::H3_SETTINGS_ERROR),
        (&settings, Code::H3_CLOSED_CRITICAL_STREAM),
        (&[1, 2, 3], Code::H3_STREAM_CREATION_ERROR),
    ];
    for (bytes, want) in one_way {
        let (_endpoint, quic) = quic(door(&world), WEB, &cert).await.unwrap();
        let mut stream = quic.open_uni().await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream.finish().unwrap();
        assert_eq!(closed_with(&quic).await, Some(want.value()), "{bytes:?}");
    }
    let requests: &[(&[u8], Code)] = &[
        (&frame(0, b"data"), Code::H3_FRAME_UNEXPECTED),
        (&frame(4, b""), Code::H3_FRAME_UNEXPECTED),
        (
            &[&post()[..], &frame(7, &[0])].concat(),
            Code::H3_FRAME_UNEXPECTED,
        ),
        (&[&post()[..], &[0, 9, 1]].concat(), Code::H3_FRAME_ERROR),
        (&post()[..9], Code::H3_FRAME_ERROR),
        (
            &[&post()[..], &[5, 0xbf, 0xff, 0xff, 0xff]].concat(),
            Code::H3_EXCESSIVE_LOAD,
        ),
        (&frame(1, b""), Code::QPACK_DECOMPRESSION_FAILED),
        (
            &frame(1, &[0, 0, 0xff, 0xff, 0xff]),
            Code::QPACK_DECOMPRESSION_FAILED,
        ),
        (&frame(1, &[1, 0, 0x80]), Code::QPACK_DECOMPRESSION_FAILED),
    ];
    for (bytes, want) in requests {
        let (_endpoint, quic) = quic(door(&world), WEB, &cert).await.unwrap();
        let (mut send, mut recv) = quic.open_bi().await.unwrap();
        // Of one that is closed at once not all is taken.
        let _ = send.write_all(bytes).await;
        let _ = send.finish();
        let _ = recv.read_to_end(1024).await;
        assert_eq!(closed_with(&quic).await, Some(want.value()), "{bytes:?}");
    }
    assert_eq!(Client::new(&world, &cert).await.get("/").await.status, 200);
    let seen = || app.seen.at_once.load(Ordering::SeqCst);
    eventually("no request is left", || seen() == 0).await;
}

/// One that is malformed ends alone; the others on its connection go on.
#[tokio::test]
async fn a_malformed_request_ends_alone() {
    let (world, cert) = world(Deployed::default()).await;
    let _app = world.run(1, "a").await;
    let client = &mut Client::new(&world, &cert).await;
    let with = |more: &[(&str, &str)]| head(&[&GET[..], more].concat());
    let body = |length, body: &[u8]| {
        let post = [(":method", "POST"), GET[1], GET[2], (":path", "/echo")];
        let head = head(&[&post[..], &[("content-length", length)]].concat());
        [head, body.to_vec()].concat()
    };
    let table: &[(&str, Vec<u8>)] = &[
        ("no path", head(&GET[..3])),
        ("no method", head(&GET[1..])),
        ("no host", head(&[GET[0], GET[1], GET[3]])),
        ("another host", with(&[("host", "other.edge.test")])),
        ("a name of its own", with(&[(":x", "y")])),
        ("upper case", with(&[("X-Y", "z")])),
        ("a line", with(&[("x", "a\r\nb: c")])),
        ("connection", with(&[("connection", "close")])),
        ("coding", with(&[("transfer-encoding", "chunked")])),
        ("websocket", with(&[(":protocol", "websocket")])),
        ("no length", with(&[("content-length", "-1")])),
        ("too little", body("5", &frame(0, b"four"))),
        ("too much", body("3", &frame(0, b"four"))),
        ("no body", body("3", b"")),
        ("nothing", vec![]),
    ];
    for (what, bytes) in table {
        let (mut send, mut recv) = client.quic.open_bi().await.unwrap();
        // It may be stopped before all is said.
        let _ = send.write_all(bytes).await;
        let _ = send.finish();
        let said = timeout(PATIENCE, recv.read_to_end(64 * 1024)).await;
        let want = if bytes.is_empty() {
            Code::H3_REQUEST_INCOMPLETE
        } else {
            Code::H3_MESSAGE_ERROR
        };
        let quinn::ReadToEndError::Read(quinn::ReadError::Reset(code)) = said.unwrap().unwrap_err()
        else {
            panic!("{what}: no reset");
        };
        assert_eq!(code.into_inner(), want.value(), "{what}");
    }
    assert_eq!(client.get("/").await.body, "a");
    let problems = world.ingress().counts().problems;
    assert!(
        problems.iter().all(|(_, count)| *count == 0),
        "{problems:?}"
    );
}

/// Numbers that look like none (splitmix64).
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }

    fn coin(&mut self) -> bool {
        self.byte() & 1 == 0
    }
}

#[tokio::test]
async fn noise_breaks_nothing() {
    let (world, cert) = world(Deployed::default()).await;
    let _app = world.run(1, "a").await;
    for turn in 0..64_u64 {
        let (_endpoint, quic) = quic(door(&world), WEB, &cert).await.unwrap();
        let mut noise = Noise(turn);
        for _ in 0..8 {
            let mut bytes: Vec<u8> = (0..=noise.byte()).map(|_| noise.byte()).collect();
            // What it begins with has a meaning, mostly.
            bytes[0] = [0, 1, 2, 4, 7, 0x21, bytes[0]][usize::from(noise.byte()) % 7];
            let head = if noise.coin() { post() } else { vec![] };
            let sent = async {
                let mut send = if noise.coin() {
                    quic.open_bi().await?.0
                } else {
                    quic.open_uni().await?
                };
                send.write_all(&[head, bytes].concat()).await.ok();
                if noise.coin() {
                    send.finish().ok();
                } else {
                    send.reset(0_u32.into()).ok();
                }
                Ok::<_, ConnectionError>(())
            };
            if timeout(PATIENCE, sent).await.unwrap().is_err() {
                break;
            }
        }
    }
    assert_eq!(Client::new(&world, &cert).await.get("/").await.body, "a");
    assert!(world.ingress().stop(PATIENCE).await, "all are gone");
}

#[tokio::test]
async fn who_does_nothing_but_break_off_is_closed() {
    let (world, cert) = world(Deployed::default()).await;
    let _app = world.run(1, "a").await;
    let mut client = Client::new(&world, &cert).await;
    let breaking = async {
        loop {
            let Ok(mut talk) = client.begin(ask("/slow/60000").body(()).unwrap()).await else {
                return;
            };
            talk.stop_stream(Code::H3_REQUEST_CANCELLED);
            talk.stop_sending(Code::H3_REQUEST_CANCELLED);
        }
    };
    timeout(PATIENCE, breaking).await.unwrap();
    let closed = closed_with(&client.quic).await;
    assert_eq!(closed, Some(Code::H3_EXCESSIVE_LOAD.value()));
    assert_eq!(Client::new(&world, &cert).await.get("/").await.body, "a");
}

/// Many begin handshakes and never go on; who comes then must show that its address is its own.
#[tokio::test]
async fn under_load_newcomers_prove_their_address() {
    let (world, cert) = world(Deployed::default()).await;
    let _app = world.run(1, "a").await;
    // What goes to the door goes through; nothing comes back.
    let hole = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
    let out = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
    let asked = Arc::new(AtomicBool::new(false));
    let (from, to, at) = (hole.clone(), out.clone(), door(&world));
    let there = tokio::spawn(async move {
        let mut buffer = [0; 2048];
        loop {
            let length = from.recv(&mut buffer).await.unwrap();
            to.send_to(&buffer[..length], at).await.unwrap();
        }
    });
    let seen = asked.clone();
    let back = tokio::spawn(async move {
        let mut buffer = [0; 2048];
        loop {
            let length = out.recv(&mut buffer).await.unwrap();
            // Retry (RFC 9000, 17.2.5).
            if length > 0 && buffer[0] & 0xf0 == 0xf0 {
                seen.store(true, Ordering::SeqCst);
            }
        }
    });
    let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let connect = || {
        let at = hole.local_addr().unwrap();
        endpoint
            .connect_with(client_config(&cert), at, WEB)
            .unwrap()
    };
    let stuck: Vec<_> = (0..48).map(|_| connect()).collect();
    eventually("somebody is asked for a proof", || {
        asked.load(Ordering::SeqCst)
    })
    .await;
    // Who can prove it is let in.
    let mut client = Client::new(&world, &cert).await;
    let mut talk = client.begin(ask("/").body(()).unwrap()).await.unwrap();
    talk.finish().await.unwrap();
    assert_eq!(read(&mut talk).await.unwrap().body, "a");
    drop(stuck);
    there.abort();
    back.abort();
}
