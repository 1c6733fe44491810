//! Refusals in the distribution specification's words: a status and one code. Decides nothing else.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::image::{ImageError, PushError};

/// Why a request is refused.
#[derive(Debug)]
pub(super) enum Refusal {
    Unauthorised,
    NoSuchPath,
    NoSuchMethod,
    BadName(ImageError),
    BadDigest,
    WrongManifestDigest,
    ManifestUnknown,
    NameUnknown,
    BadRange,
    Manifest(PushError),
    Blob(PushError),
}

impl Refusal {
    fn parts(&self) -> (StatusCode, &'static str, String) {
        let text = |text: &str| text.to_owned();
        match self {
            Self::Unauthorised => (
                StatusCode::UNAUTHORIZED,
                "UNAUTHORIZED",
                text("log in with the operator token as the password; any user name will do"),
            ),
            Self::NoSuchPath => (StatusCode::NOT_FOUND, "NAME_UNKNOWN", text("no such path")),
            Self::NoSuchMethod => (
                StatusCode::METHOD_NOT_ALLOWED,
                "UNSUPPORTED",
                text("this is not served here"),
            ),
            Self::BadName(error) => (StatusCode::BAD_REQUEST, "NAME_INVALID", error.to_string()),
            Self::BadDigest => (
                StatusCode::BAD_REQUEST,
                "DIGEST_INVALID",
                text("a digest is `sha256:` and 64 of 0-9 and a-f"),
            ),
            Self::WrongManifestDigest => (
                StatusCode::BAD_REQUEST,
                "DIGEST_INVALID",
                text("the manifest has another digest"),
            ),
            Self::ManifestUnknown => (
                StatusCode::NOT_FOUND,
                "MANIFEST_UNKNOWN",
                text("no such image is held on this node"),
            ),
            Self::NameUnknown => (
                StatusCode::NOT_FOUND,
                "NAME_UNKNOWN",
                text("nothing was pushed under this name"),
            ),
            Self::BadRange => (
                StatusCode::RANGE_NOT_SATISFIABLE,
                "BLOB_UPLOAD_INVALID",
                text("Content-Range is FIRST-LAST"),
            ),
            Self::Manifest(error) => of_manifest(error),
            Self::Blob(error) => of_blob(error),
        }
    }
}

fn of_manifest(error: &PushError) -> (StatusCode, &'static str, String) {
    let (status, code) = match error {
        PushError::BlobUnknown(_) | PushError::SubjectUnknown(_) => {
            (StatusCode::BAD_REQUEST, "MANIFEST_BLOB_UNKNOWN")
        }
        PushError::TooMany => (StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS"),
        PushError::Image(ImageError::TooLarge { .. }) => {
            (StatusCode::PAYLOAD_TOO_LARGE, "SIZE_INVALID")
        }
        PushError::Image(ImageError::Unsupported { .. }) => {
            (StatusCode::BAD_REQUEST, "UNSUPPORTED")
        }
        PushError::Image(ImageError::Io { .. } | ImageError::Interrupted { .. }) => {
            (StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN")
        }
        _ => (StatusCode::BAD_REQUEST, "MANIFEST_INVALID"),
    };
    (status, code, error.to_string())
}

fn of_blob(error: &PushError) -> (StatusCode, &'static str, String) {
    let (status, code) = match error {
        PushError::UploadUnknown => (StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN"),
        PushError::BlobUnknown(_) | PushError::SubjectUnknown(_) => {
            (StatusCode::NOT_FOUND, "BLOB_UNKNOWN")
        }
        PushError::OutOfOrder { .. } => (StatusCode::RANGE_NOT_SATISFIABLE, "BLOB_UPLOAD_INVALID"),
        PushError::TooMany => (StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS"),
        PushError::Cut(_) => (StatusCode::BAD_REQUEST, "BLOB_UPLOAD_INVALID"),
        PushError::WrongDigest { .. } => (StatusCode::BAD_REQUEST, "DIGEST_INVALID"),
        PushError::Image(ImageError::TooLarge { .. }) => {
            (StatusCode::PAYLOAD_TOO_LARGE, "SIZE_INVALID")
        }
        PushError::Image(_) => (StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN"),
    };
    (status, code, error.to_string())
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (status, code, message) = self.parts();
        let body = json!({ "errors": [{ "code": code, "message": message }] });
        let mut response = (status, Json(body)).into_response();
        let headers = response.headers_mut();
        if status == StatusCode::UNAUTHORIZED {
            let realm = HeaderValue::from_static("Basic realm=\"selvedge\"");
            headers.insert(header::WWW_AUTHENTICATE, realm);
        }
        if let Self::Blob(PushError::OutOfOrder { have }) = self
            && let Ok(range) = format!("0-{}", have.saturating_sub(1)).parse()
        {
            headers.insert(header::RANGE, range);
        }
        response
    }
}
