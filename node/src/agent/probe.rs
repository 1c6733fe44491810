//! Asking a container once whether it is ready.

use std::net::SocketAddr;
use std::time::Duration;

use http_body_util::Empty;
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use scheduler::model::{Probe, ProbeAction, RevisionSpec};
use tokio::net::TcpStream;

/// A probe that names no timeout gets Kubernetes' default.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(1);

/// What to ask: the readiness probe of the service, or a connect to its port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    action: ProbeAction,
    timeout: Duration,
}

impl Question {
    pub fn of(spec: &RevisionSpec) -> Self {
        let fallback = Self {
            action: ProbeAction::Tcp { port: 0 },
            timeout: DEFAULT_TIMEOUT,
        };
        match spec.main().and_then(|c| c.readiness.as_ref()) {
            Some(Probe {
                action,
                timeout_seconds,
                ..
            }) => Self {
                action: action.clone(),
                timeout: match timeout_seconds {
                    0 => DEFAULT_TIMEOUT,
                    seconds => Duration::from_secs(u64::from(*seconds)),
                },
            },
            None => fallback,
        }
    }

    /// Asks `service`, the instance's address and port. An error or a late answer is a no.
    pub async fn ask(&self, service: SocketAddr) -> bool {
        let asked = async {
            match &self.action {
                ProbeAction::Http { path, port } => http(at(service, *port), path).await,
                ProbeAction::Tcp { port } => TcpStream::connect(at(service, *port)).await.is_ok(),
                // Refused at deploy until they are built; a stored one counts as not ready.
                ProbeAction::Grpc { .. } | ProbeAction::Exec { .. } => false,
            }
        };
        tokio::time::timeout(self.timeout, asked)
            .await
            .unwrap_or(false)
    }
}

fn at(service: SocketAddr, port: u16) -> SocketAddr {
    SocketAddr::new(service.ip(), if port == 0 { service.port() } else { port })
}

async fn http(address: SocketAddr, path: &str) -> bool {
    let Ok(stream) = TcpStream::connect(address).await else {
        return false;
    };
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let Ok((mut sender, connection)) = handshake else {
        return false;
    };
    let driver = tokio::spawn(connection);
    let request = http::Request::get(path)
        .header(http::header::HOST, address.to_string())
        .header(http::header::USER_AGENT, "selvedge-probe/1")
        .body(Empty::<Bytes>::new());
    let ready = match request {
        Ok(request) => sender
            .send_request(request)
            .await
            .is_ok_and(|answer| answer.status().is_success() || answer.status().is_redirection()),
        Err(_) => false,
    };
    driver.abort();
    ready
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    async fn answering(status: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut head = [0; 1024];
                let _ = stream.read(&mut head).await;
                let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        address
    }

    fn question(action: ProbeAction) -> Question {
        Question {
            action,
            timeout: DEFAULT_TIMEOUT,
        }
    }

    #[tokio::test]
    async fn http_takes_200_to_399_and_tcp_a_connect() {
        let get = question(ProbeAction::Http {
            path: "/healthz".into(),
            port: 0,
        });
        for (status, ready) in [("200 OK", true), ("302 Found", true), ("503 Busy", false)] {
            assert_eq!(get.ask(answering(status).await).await, ready, "{status}");
        }
        let tcp = question(ProbeAction::Tcp { port: 0 });
        assert!(tcp.ask(answering("200 OK").await).await);
        let closed = TcpListener::bind("127.0.0.1:0")
            .await
            .unwrap()
            .local_addr()
            .unwrap();
        assert!(!tcp.ask(closed).await);
    }
}
