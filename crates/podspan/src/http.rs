//! Metrics and health over HTTP: `/metrics`, `/healthz`, `/readyz`; on loopback unless told otherwise.
//!
//! Read only, and never in the way of the loop: what is answered hangs on the [`Board`]. An address that cannot be had is a
//! problem that is told, and tried again; nothing else depends on it.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;

use crate::agent::PERIOD;
use crate::board::Board;
use crate::metrics;

/// A look is due after one period: after two without one, the loop hangs.
const HANGS: Duration = PERIOD.saturating_mul(2);
/// How long after a failure the address is tried again.
const RETRY: Duration = Duration::from_secs(5);
/// Who answers, in the header `server`.
const SERVER: &str = "podspan";
/// How long `podspan status` waits for an answer.
const PATIENCE: Duration = Duration::from_secs(1);
/// More of an answer is not read, in bytes.
const ANSWER: u64 = 64 * 1024;
/// OpenMetrics 1.0, which Prometheus reads by this name.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Answers until the end of the process; `news` is called when a problem came or went.
pub async fn serve(address: SocketAddr, board: Arc<Board>, news: impl Fn()) {
    let registry = Arc::new(metrics::registry(&board));
    let app = Router::new()
        .route("/metrics", get(answer_metrics))
        .with_state(registry)
        .merge(
            Router::new()
                .route("/healthz", get(answer_health))
                .route("/readyz", get(answer_readiness))
                .with_state(Arc::clone(&board)),
        );
    let mut told: Option<String> = None;
    loop {
        let (failure, listener) = match TcpListener::bind(address).await {
            Ok(listener) => (None, Some(listener)),
            Err(error) => (Some(cannot_listen(address, &error)), None),
        };
        if told != failure {
            if let Some(gone) = told.take() {
                board.set_problem(&gone, false);
            }
            if let Some(new) = &failure {
                board.set_problem(new, true);
            }
            told = failure;
            news();
        }
        if let Some(listener) = listener {
            // It ends on no error: what a connection meets is that connection's.
            let _ = axum::serve(listener, app.clone()).await;
        }
        tokio::time::sleep(RETRY).await;
    }
}

fn cannot_listen(address: SocketAddr, error: &std::io::Error) -> String {
    let port = address.port();
    format!(
        "no metrics and no health on {address}: {}; see who has it: ss -ltnp sport = :{port}, or set listen",
        podspan_kernel::Error::from_io("listen", error)
    )
}

async fn answer_metrics(State(registry): State<Arc<Registry>>) -> impl IntoResponse {
    let mut text = String::new();
    let status = match encode(&mut text, &registry) {
        Ok(()) => StatusCode::OK,
        Err(std::fmt::Error) => StatusCode::INTERNAL_SERVER_ERROR,
    };
    let headers = [
        (header::CONTENT_TYPE, OPEN_METRICS),
        (header::SERVER, SERVER),
    ];
    (status, headers, text)
}

async fn answer_health(State(board): State<Arc<Board>>) -> impl IntoResponse {
    answer(health(board.since_look_began()).into_iter().collect())
}

async fn answer_readiness(State(board): State<Arc<Board>>) -> impl IntoResponse {
    answer(unready(&board))
}

/// Why pods cannot be started on this machine, or may not work; nothing when they can.
pub fn unready(board: &Board) -> Vec<String> {
    reasons(board.since_look_began(), &board.unready())
}

/// What the last look found, which is worth nothing where the loop hangs.
fn reasons(since: Duration, found: &[String]) -> Vec<String> {
    health(since).into_iter().chain(found.to_vec()).collect()
}

/// Why the loop is not alive, when the last look began so long ago.
fn health(since: Duration) -> Option<String> {
    (since > HANGS).then(|| {
        format!(
            "the last look began {} s ago; one is due every {} s",
            since.as_secs(),
            PERIOD.as_secs()
        )
    })
}

/// That all is well, or what is not, a line each.
fn answer(reasons: Vec<String>) -> impl IntoResponse {
    let headers = [
        (header::CONTENT_TYPE, "text/plain; charset=utf-8"),
        (header::SERVER, SERVER),
    ];
    if reasons.is_empty() {
        (StatusCode::OK, headers, "ok\n".to_owned())
    } else {
        let text = reasons.join("\n") + "\n";
        (StatusCode::SERVICE_UNAVAILABLE, headers, text)
    }
}

/// Who is at the address.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// Nobody.
    None,
    /// The agent or the router, and it is well.
    Well,
    /// The agent or the router, and it is not.
    Ill(String),
    /// Somebody else.
    Foreign,
}

/// Asks for the health of the agent at the address.
pub fn ask(address: SocketAddr) -> Answer {
    let Ok(stream) = connect(address) else {
        return Answer::None;
    };
    // One who says nothing is none of us either.
    let text = request(stream, address).unwrap_or_default();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    if !head
        .lines()
        .any(|line| line.eq_ignore_ascii_case("server: podspan"))
    {
        return Answer::Foreign;
    }
    let status = head.split(' ').nth(1);
    if status == Some("200") {
        Answer::Well
    } else {
        Answer::Ill(body.trim().replace('\n', "; "))
    }
}

fn connect(mut address: SocketAddr) -> std::io::Result<TcpStream> {
    if address.ip().is_unspecified() {
        let loopback = match address {
            SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        };
        address.set_ip(loopback);
    }
    TcpStream::connect_timeout(&address, PATIENCE)
}

fn request(mut stream: TcpStream, address: SocketAddr) -> std::io::Result<String> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let request = format!("GET /healthz HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.take(ANSWER).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loop_is_alive_as_long_as_it_looks() {
        assert_eq!(health(HANGS), None);
        let reason = "the last look began 61 s ago; one is due every 30 s";
        assert_eq!(health(Duration::from_secs(61)).as_deref(), Some(reason));
        assert_eq!(reasons(HANGS, &[]), [""; 0]);
        let found = ["a sysctl".to_owned()];
        assert_eq!(reasons(HANGS, &found), found);
        assert_eq!(reasons(Duration::from_secs(61), &[]), [reason]);
    }
}
