//! Probes against real small servers: what is a yes, and how each no is told.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, Iter};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use scheduler::model::{InstanceId, ProbeAction};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::{Asked, Question};
use crate::runtime::fake::Fake;

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// A port nobody listens on.
async fn closed() -> SocketAddr {
    listen().await.1
}

/// Takes connections and says nothing, as a program that hangs.
async fn silent() -> SocketAddr {
    let (listener, address) = listen().await;
    tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Ok(accepted) = listener.accept().await {
            kept.push(accepted);
        }
    });
    address
}

/// Answers `answer` to whatever is sent; the requests come out of the channel.
async fn saying(answer: &'static str) -> (SocketAddr, tokio::sync::mpsc::Receiver<String>) {
    let (listener, address) = listen().await;
    let (asked, requests) = tokio::sync::mpsc::channel(8);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = [0; 2048];
            let count = stream.read(&mut head).await.unwrap_or(0);
            let text = String::from_utf8_lossy(&head[..count]).into_owned();
            let _ = asked.try_send(text);
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    (address, requests)
}

async fn ask(action: ProbeAction, timeout: Duration, service: SocketAddr) -> Result<(), String> {
    let whom = Asked {
        id: InstanceId("web-00001-a".into()),
        service,
        runtime: Arc::new(Fake::new("/nowhere")),
    };
    let question = Question {
        action,
        timeout,
        introduced: false,
    };
    question.ask(&whom).await
}

const PATIENT: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(100);

fn get(path: &str, headers: &[(&str, &str)]) -> ProbeAction {
    let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    ProbeAction::Http {
        path: path.into(),
        port: 0,
        headers: headers.iter().map(own).collect::<BTreeMap<_, _>>(),
    }
}

fn check(service: &str) -> ProbeAction {
    let service = service.into();
    ProbeAction::Grpc { port: 0, service }
}

#[tokio::test]
async fn http_takes_200_to_399_and_tells_each_no() {
    for (answer, said) in [
        ("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", None),
        ("HTTP/1.1 302 Found\r\nlocation: /x\r\n\r\n", None),
        ("HTTP/1.1 200 OK\r\ncontent-length: 9999999\r\n\r\nx", None),
        (
            "HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n",
            Some("status 503, not 200 to 399"),
        ),
        (
            "HTTP/1.1 404 No\r\n\r\n",
            Some("status 404, not 200 to 399"),
        ),
        (
            "SSH-2.0-x\r\n",
            Some("no HTTP answer: invalid HTTP version parsed"),
        ),
        (
            "",
            Some("no HTTP answer: connection closed before message completed"),
        ),
    ] {
        let (address, _requests) = saying(answer).await;
        let want = said.map_or(Ok(()), |said| {
            Err(format!("http GET {address}/healthz: {said}"))
        });
        let got = ask(get("/healthz", &[]), PATIENT, address).await;
        assert_eq!(got, want, "{answer}");
    }
}

#[tokio::test]
async fn http_asks_as_a_kubelet_does() {
    let (address, mut requests) = saying("HTTP/1.1 200 OK\r\n\r\n").await;
    let headers = [("x-mine", "1"), ("Host", "web.internal")];
    ask(get("/a?b=c", &headers), PATIENT, address)
        .await
        .unwrap();
    let request = requests.recv().await.unwrap();
    let lines: Vec<&str> = request.lines().collect();
    assert_eq!(lines[0], "GET /a?b=c HTTP/1.1");
    for line in ["host: web.internal", "accept: */*", "x-mine: 1"] {
        assert!(lines.contains(&line), "{request}");
    }
    let agent = lines
        .iter()
        .find(|l| l.starts_with("user-agent: kube-probe/"));
    assert!(agent.is_some(), "{request}");
}

#[tokio::test]
async fn a_port_that_wants_the_proxy_protocol_gets_it_first() {
    let (address, mut requests) = saying("HTTP/1.1 200 OK\r\n\r\n").await;
    let (other, mut elsewhere) = saying("HTTP/1.1 200 OK\r\n\r\n").await;
    let whom = |service| Asked {
        id: InstanceId("web-00001-a".into()),
        service,
        runtime: Arc::new(Fake::new("/nowhere")),
    };
    let mut question = Question {
        action: get("/", &[]),
        timeout: PATIENT,
        introduced: true,
    };
    question.ask(&whom(address)).await.unwrap();
    let heard = requests.recv().await.unwrap();
    assert!(
        heard.starts_with("\r\n\r\n\0\r\nQUIT\n \0\0\0"),
        "{heard:?}"
    );
    if let ProbeAction::Http { port, .. } = &mut question.action {
        *port = other.port();
    }
    question.ask(&whom(address)).await.unwrap();
    let heard = elsewhere.recv().await.unwrap();
    assert!(
        heard.starts_with("GET / HTTP/1.1"),
        "a port of another's: {heard:?}"
    );
}

#[tokio::test]
async fn a_refused_connection_is_told_from_a_server_that_hangs() {
    let (refused, hangs) = (closed().await, silent().await);
    let tcp = || ProbeAction::Tcp { port: 0 };
    assert_eq!(ask(tcp(), PATIENT, hangs).await, Ok(()));
    for (action, address, want) in [
        (tcp(), refused, format!("tcp {refused}: connection refused")),
        (
            get("/", &[]),
            refused,
            format!("http GET {refused}/: connection refused"),
        ),
        (
            get("/", &[]),
            hangs,
            format!("http GET {hangs}/: no answer within 100ms"),
        ),
        (
            check(""),
            refused,
            format!("grpc {refused} ``: connection refused"),
        ),
        (
            check("web"),
            hangs,
            format!("grpc {hangs} `web`: no answer within 100ms"),
        ),
    ] {
        assert_eq!(ask(action, SHORT, address).await, Err(want));
    }
}

#[tokio::test]
async fn a_probe_may_ask_another_port() {
    let (service, other) = (closed().await, silent().await);
    let tcp = ProbeAction::Tcp { port: other.port() };
    assert_eq!(ask(tcp, PATIENT, service).await, Ok(()));
}

/// A health service that knows `web` (serving), `down`, and nothing else; without a name it says
/// nothing, which is UNKNOWN.
async fn health(request: http::Request<Incoming>) -> Result<http::Response<Answer>, hyper::Error> {
    assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
    assert_eq!(request.headers()["content-type"], "application/grpc");
    let body = request.into_body().collect().await?.to_bytes();
    let name = body.get(7..).unwrap_or(&[]).to_vec();
    assert_eq!(usize::from(body[4]), body.len() - 5);
    let (message, status): (&[u8], &str) = match name.as_slice() {
        b"web" => (&[0, 0, 0, 0, 2, 8, 1], "0"),
        b"down" => (&[0, 0, 0, 0, 2, 8, 2], "0"),
        b"" => (&[0, 0, 0, 0, 0], "0"),
        b"odd" => (&[0, 0, 0, 0, 9, 8, 1], "0"),
        b"full" => (&[], "8"),
        _ => (&[], "5"),
    };
    let mut trailers = http::HeaderMap::new();
    trailers.insert("grpc-status", status.parse().unwrap());
    let frames = [
        Ok(Frame::data(Bytes::copy_from_slice(message))),
        Ok(Frame::trailers(trailers)),
    ];
    Ok(http::Response::new(StreamBody::new(stream::iter(frames))))
}

type Answer = StreamBody<Iter<std::array::IntoIter<Result<Frame<Bytes>, hyper::Error>, 2>>>;

#[tokio::test]
async fn grpc_asks_the_health_service() {
    let (listener, address) = listen().await;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let served = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service_fn(health));
            tokio::spawn(served);
        }
    });
    for (service, said) in [
        ("web", None),
        ("down", Some("NOT_SERVING")),
        ("", Some("UNKNOWN, not SERVING")),
        ("odd", Some("no gRPC answer: not a health status")),
        ("full", Some("grpc-status 8")),
        (
            "nobody",
            Some("the server does not know this service (grpc-status 5)"),
        ),
    ] {
        let want = said.map_or(Ok(()), |said| {
            Err(format!("grpc {address} `{service}`: {said}"))
        });
        assert_eq!(ask(check(service), PATIENT, address).await, want);
    }
}

#[tokio::test]
async fn grpc_is_not_spoken_by_everybody() {
    let (address, _requests) = saying("HTTP/1.1 400 Bad Request\r\n\r\n").await;
    let said = ask(check(""), PATIENT, address).await.unwrap_err();
    let begins = format!("grpc {address} ``: no gRPC answer: ");
    assert!(said.starts_with(&begins), "{said}");
}

#[tokio::test]
async fn exec_runs_the_command_in_the_container() {
    let runtime = Arc::new(Fake::new("/nowhere"));
    let whom = Asked {
        id: InstanceId("web-00001-a".into()),
        service: closed().await,
        runtime: runtime.clone(),
    };
    let question = Question {
        action: ProbeAction::Exec {
            command: vec!["cat".into(), "/ready".into()],
        },
        timeout: PATIENT,
        introduced: false,
    };
    assert_eq!(question.ask(&whom).await, Ok(()));
    assert_eq!(runtime.calls(), ["run cat /ready in web-00001-a"]);
}
