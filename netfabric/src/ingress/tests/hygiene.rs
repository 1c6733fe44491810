//! What of a head goes on, and what does not.

use http::header::HOST;
use http::{HeaderName, HeaderValue, Request, Uri};

use super::super::headers::{
    Caller, FORWARDED_FOR, Head, MAX_HEADERS, REQUEST_ID, REVISION, to_h2,
};

type Line<'a> = (&'a str, &'a str);

fn request(lines: &[Line]) -> Request<()> {
    let mut request = Request::builder().uri("/p?q=1");
    for (name, value) in lines {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap()
}

fn caller() -> Caller<'static> {
    Caller {
        address: [192, 0, 2, 1].into(),
        inside: None,
        secure: false,
    }
}

fn passed(lines: &[Line]) -> Vec<String> {
    let mut head = Head::vet(&mut request(lines)).unwrap();
    head.introduce(caller(), &HeaderValue::from_static("ID"));
    let request = head.request(());
    assert_eq!(request.uri(), "/p?q=1");
    let lines = request.headers().iter();
    let mut lines: Vec<_> = lines
        .map(|(n, v)| format!("{n}: {}", v.to_str().unwrap()))
        .collect();
    lines.sort();
    lines
}

const OURS: [&str; 6] = [
    "forwarded: for=192.0.2.1;host=\"web.test\";proto=http",
    "host: web.test",
    "x-forwarded-for: 192.0.2.1",
    "x-forwarded-host: web.test",
    "x-forwarded-proto: http",
    "x-request-id: ID",
];

#[test]
fn what_goes_on_and_what_does_not() {
    let table: &[(&[Line], &[&str])] = &[
        (&[], &[]),
        (
            &[("traceparent", "00-1-2-01"), ("x-own", "1")],
            &["traceparent: 00-1-2-01", "x-own: 1"],
        ),
        (
            &[
                ("connection", "close, X-Secret"),
                ("x-secret", "1"),
                ("keep-alive", "5"),
            ],
            &[],
        ),
        (
            &[("connection", "host, cookie"), ("cookie", "a=1")],
            &["cookie: a=1"],
        ),
        (
            &[("cookie", "a=1"), ("cookie", "b=2")],
            &["cookie: a=1; b=2"],
        ),
        (
            &[("te", "gzip, trailers"), ("trailer", "x-sum")],
            &["te: trailers", "trailer: x-sum"],
        ),
        (
            &[
                ("te", "gzip"),
                ("proxy-authorization", "x"),
                ("proxy-connection", "x"),
            ],
            &[],
        ),
        (
            &[
                ("x-forwarded-for", "6.6.6.6"),
                ("x-forwarded-port", "1"),
                ("forwarded", "for=6.6.6.6"),
            ],
            &[],
        ),
        (&[("x-real-ip", "6.6.6.6"), ("x-request-id", "mine")], &[]),
        (
            &[("x-selvedge-revision", "a/b"), ("x-selvedge-anything", "1")],
            &[],
        ),
        (&[("content-length", "3"), ("expect", "100-continue")], &[]),
        (&[("transfer-encoding", "chunked")], &[]),
        (
            &[("connection", "Upgrade"), ("upgrade", "websocket")],
            &["connection: upgrade", "upgrade: websocket"],
        ),
        (&[("upgrade", "websocket")], &[]),
        (
            &[
                ("connection", "upgrade, http2-settings"),
                ("upgrade", "h2c"),
                ("http2-settings", "x"),
            ],
            &[],
        ),
    ];
    for (lines, want) in table {
        let lines: Vec<_> = [("host", "web.test")]
            .iter()
            .chain(*lines)
            .copied()
            .collect();
        let mut want: Vec<_> = want.iter().chain(&OURS).map(ToString::to_string).collect();
        want.sort();
        assert_eq!(passed(&lines), want, "{lines:?}");
    }
}

#[test]
fn doubtful_requests_are_refused() {
    let host = ("host", "web.test");
    let table: &[&[Line]] = &[
        &[],
        &[host, host],
        &[("host", "")],
        &[("host", "user@web.test")],
        &[("host", "web.test/x")],
        &[("host", "a b")],
        &[host, ("transfer-encoding", "gzip, chunked")],
        &[host, ("transfer-encoding", "xchunked")],
        &[
            host,
            ("transfer-encoding", "chunked"),
            ("transfer-encoding", "chunked"),
        ],
    ];
    for lines in table {
        assert!(Head::vet(&mut request(lines)).is_err(), "{lines:?}");
    }
    let mut absolute = request(&[host]);
    *absolute.uri_mut() = Uri::from_static("http://other.test/");
    assert!(Head::vet(&mut absolute).is_err());
    *absolute.uri_mut() = Uri::from_static("http://WEB.test/x");
    absolute
        .headers_mut()
        .insert(HOST, HeaderValue::from_static("web.TEST"));
    let head = Head::vet(&mut absolute).unwrap();
    assert_eq!(head.request(()).uri(), "/x");
    let mut many = request(&[host]);
    for i in 0..=MAX_HEADERS {
        let name = HeaderName::try_from(format!("x-{i}")).unwrap();
        many.headers_mut()
            .insert(name, HeaderValue::from_static("1"));
    }
    assert!(Head::vet(&mut many).is_err());
}

#[test]
fn a_peer_keeps_what_the_first_door_said() {
    let mut first = Head::vet(&mut request(&[("host", "web.test")])).unwrap();
    first.introduce(caller(), &HeaderValue::from_static("ID"));
    let mut sent = first.request(());
    let revision = HeaderValue::from_static("default/web-00001");
    sent.headers_mut().insert(REVISION, revision);
    let second = Head::from_peer(&mut sent).unwrap();
    let request = second.request(());
    assert_eq!(request.headers()[FORWARDED_FOR], "192.0.2.1");
    assert_eq!(request.headers()[REQUEST_ID], "ID");
    assert!(!request.headers().contains_key(REVISION));
}

#[test]
fn h2_carries_the_authority_in_its_target() {
    let head = Head::vet(&mut request(&[("host", "web.test:8080")])).unwrap();
    let mut request = head.request(());
    to_h2(&mut request);
    assert_eq!(request.uri(), "http://web.test:8080/p?q=1");
    assert!(!request.headers().contains_key(HOST));
}
