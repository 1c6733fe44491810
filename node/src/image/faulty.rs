//! A registry of faults, for tests: a proxy in front of a real one that lets answers through, or
//! spoils them as a plan says, down to the byte at which a connection ends. It ends with the
//! test's runtime.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A request as it reached the proxy.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub method: String,
    /// With its query.
    pub path: String,
    pub range: Option<String>,
    pub authorization: Option<String>,
    /// How many requests of this path came before.
    pub number: usize,
}

impl Asked {
    pub(super) fn is_layer(&self, layers: &[String]) -> bool {
        layers.iter().any(|layer| self.path.contains(layer))
    }
}

/// What becomes of an answer.
#[derive(Debug, Clone)]
pub(super) enum Fault {
    None,
    /// The connection ends after so many bytes, the head's among them.
    Cut(usize),
    /// The same after so many bytes of the body.
    CutBody(usize),
    /// So many bytes of the body, and nothing that says there should be more.
    Short(usize),
    /// Another body of the same length.
    Swap,
    /// More than there is.
    Long,
    /// As many bytes at a time, with a pause after each.
    Slow(usize, Duration),
    /// So many bytes of the body, and then nothing for ever.
    Stall(usize),
    /// Something else altogether: a status, fields, a body.
    Say(&'static str, Vec<String>, &'static str),
}

/// In a field that is said, this proxy: no plan knows its address.
pub(super) const REALM: &str = "REALM";

pub(super) type Plan = dyn Fn(&Asked) -> Fault + Send + Sync;

pub(super) struct Faulty {
    pub address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
    sent: Arc<AtomicU64>,
}

impl Faulty {
    /// Stands before `real` and does what `plan` says.
    pub(super) async fn before(
        real: SocketAddr,
        plan: impl Fn(&Asked) -> Fault + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let sent = Arc::new(AtomicU64::new(0));
        let (all, count, plan): (_, _, Arc<Plan>) = (asked.clone(), sent.clone(), Arc::new(plan));
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (all, count, plan) = (all.clone(), count.clone(), plan.clone());
                tokio::spawn(async move {
                    // Either side may go away at any time: that is what it is for.
                    let _ = answer(client, real, &all, &count, &*plan).await;
                });
            }
        });
        Self {
            address,
            asked,
            sent,
        }
    }

    pub(super) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    /// Bytes of bodies so far.
    pub(super) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

async fn answer(
    mut client: TcpStream,
    real: SocketAddr,
    all: &Mutex<Vec<Asked>>,
    count: &AtomicU64,
    plan: &Plan,
) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let asked = note(&head, all);
    let fault = plan(&asked);
    if let Fault::Say(status, fields, body) = &fault {
        let fields = fields.iter().flat_map(|f| [f.as_str(), "\r\n"]);
        let fields = fields.collect::<String>();
        let fields = fields.replace(REALM, &client.local_addr()?.to_string());
        let length = body.len();
        let end = format!("content-length: {length}\r\nconnection: close\r\n\r\n");
        let said = format!("HTTP/1.1 {status}\r\n{fields}{end}{body}");
        client.write_all(said.as_bytes()).await?;
        return client.shutdown().await;
    }
    let (head, body) = ask(real, &head).await?;
    let (head, body) = spoilt(head, body, &fault);
    let head = format!("{head}connection: close\r\n\r\n").into_bytes();
    let all = [head.as_slice(), body.as_slice()].concat();
    let (end, step, pause) = match fault {
        Fault::Cut(at) => (at, usize::MAX, Duration::ZERO),
        Fault::CutBody(at) | Fault::Stall(at) => (head.len() + at, usize::MAX, Duration::ZERO),
        Fault::Slow(step, pause) => (usize::MAX, step, pause),
        _ => (usize::MAX, usize::MAX, Duration::ZERO),
    };
    let end = end.min(all.len());
    count.fetch_add(end.saturating_sub(head.len()) as u64, Ordering::Relaxed);
    for piece in all[..end].chunks(step) {
        client.write_all(piece).await?;
        tokio::time::sleep(pause).await;
    }
    if matches!(fault, Fault::Stall(_)) {
        // Until the client goes away.
        client.read_u8().await?;
    }
    client.shutdown().await
}

fn spoilt(mut head: String, mut body: Vec<u8>, fault: &Fault) -> (String, Vec<u8>) {
    match fault {
        Fault::Short(n) => {
            body.truncate(*n);
            head = without_length(&head);
        }
        Fault::Swap => body.iter_mut().for_each(|byte| *byte = !*byte),
        Fault::Long => {
            body.extend_from_slice(&[0; 100]);
            head = without_length(&head);
        }
        _ => {}
    }
    (head, body)
}

fn note(head: &str, all: &Mutex<Vec<Asked>>) -> Asked {
    let mut words = head.split_whitespace();
    let (method, path) = (words.next().unwrap(), words.next().unwrap());
    let mut all = all.lock().unwrap();
    let before = all.iter().filter(|asked: &&Asked| asked.path == path);
    let asked = Asked {
        method: method.to_owned(),
        path: path.to_owned(),
        range: field(head, "range"),
        authorization: field(head, "authorization"),
        number: before.count(),
    };
    all.push(asked.clone());
    asked
}

fn field(head: &str, name: &str) -> Option<String> {
    let fields = head.lines().filter_map(|line| line.split_once(':'));
    let mut found = fields.filter(|(key, _)| key.eq_ignore_ascii_case(name));
    found.next().map(|(_, value)| value.trim().to_owned())
}

/// Asks the real registry; the head without its last, empty line, and the body.
async fn ask(real: SocketAddr, head: &str) -> std::io::Result<(String, Vec<u8>)> {
    let mut server = TcpStream::connect(real).await?;
    let head = head.trim_end();
    let request = format!("{head}\r\nconnection: close\r\n\r\n");
    server.write_all(request.as_bytes()).await?;
    let mut all = Vec::new();
    server.read_to_end(&mut all).await?;
    let end = all.windows(4).position(|four| four == b"\r\n\r\n");
    let end = end.ok_or(std::io::ErrorKind::UnexpectedEof)? + 4;
    let body = all.split_off(end);
    let mut head = String::from_utf8_lossy(&all).into_owned();
    head.truncate(end - 2);
    // This proxy says that itself, once.
    Ok((head.replace("Connection: close\r\n", ""), body))
}

/// The end of the connection is the end of the body.
fn without_length(head: &str) -> String {
    let lines = head.split_inclusive("\r\n");
    let other = |line: &&str| !line.to_ascii_lowercase().starts_with("content-length:");
    lines.filter(other).collect()
}
