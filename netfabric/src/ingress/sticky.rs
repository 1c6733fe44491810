//! The cookie by which a client of a split comes back to the revision it met. What its token means is
//! `scheduler::route`'s. It goes on to the instance with the client's other cookies, as those of other
//! load balancers do: a request is not changed for it.

use scheduler::route::Keep;

/// The cookie's name. It is the host's alone, having no `Domain`.
pub(super) const NAME: &str = "selvedge-sticky";
/// Tokens looked at in one request; nobody has more than one in good faith.
const MOST: usize = 4;

/// A client as far as choosing a revision for it goes.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Visitor<'a> {
    /// Its `Cookie` header.
    pub(super) cookies: &'a [u8],
    /// It came by TLS.
    pub(super) secure: bool,
}

impl<'a> Visitor<'a> {
    /// The tokens it brought.
    pub(super) fn tokens(self) -> impl Iterator<Item = &'a str> {
        let crumbs = self.cookies.split(|b| *b == b';');
        let token = |crumb: &'a [u8]| {
            let value = crumb.trim_ascii().strip_prefix(NAME.as_bytes())?;
            std::str::from_utf8(value.strip_prefix(b"=")?).ok()
        };
        crumbs.filter_map(token).take(MOST)
    }

    /// What it is told to bring the next time it asks for the host's paths that begin so: the value of a
    /// `Set-Cookie`.
    pub(super) fn told(self, keep: Keep<'_>, path: &str) -> String {
        let (token, seconds) = (keep.token, keep.seconds);
        let path = if path.is_empty() { "/" } else { path };
        let secure = if self.secure { "; Secure" } else { "" };
        format!("{NAME}={token}; Path={path}; Max-Age={seconds}; HttpOnly; SameSite=Lax{secure}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_found_among_other_cookies() {
        let table: &[(&[u8], &[&str])] = &[
            (b"", &[]),
            (b"a=b; c=d", &[]),
            (b"selvedge-sticky=12ab", &["12ab"]),
            (b"a=b; selvedge-sticky=12ab; c=d", &["12ab"]),
            (
                b"a=b;selvedge-sticky=12ab ;selvedge-sticky=34",
                &["12ab", "34"],
            ),
            (b"selvedge-sticky=", &[""]),
            (b"selvedge-sticky", &[]),
            (b"selvedge-stickyx=1; xselvedge-sticky=1", &[]),
            (b"Selvedge-Sticky=1", &[]),
            (b"selvedge-sticky=\xff; selvedge-sticky=1", &["1"]),
        ];
        for (cookies, want) in table {
            let visitor = Visitor {
                cookies,
                secure: false,
            };
            let tokens: Vec<&str> = visitor.tokens().collect();
            assert_eq!(tokens, *want, "{}", String::from_utf8_lossy(cookies));
        }
        let many = b"selvedge-sticky=1;".repeat(1000);
        let visitor = Visitor {
            cookies: &many,
            secure: false,
        };
        assert_eq!(visitor.tokens().count(), MOST);
    }

    #[test]
    fn the_cookie_is_for_this_host_and_no_script() {
        let keep = Keep {
            token: "12ab",
            seconds: 60,
        };
        let told = |secure| {
            let cookies = b"";
            Visitor { cookies, secure }.told(keep, "")
        };
        let plain = "selvedge-sticky=12ab; Path=/; Max-Age=60; HttpOnly; SameSite=Lax";
        assert_eq!(told(false), plain);
        assert_eq!(told(true), format!("{plain}; Secure"));
        let apart = Visitor::default().told(keep, "/api");
        assert_eq!(apart, plain.replace("Path=/", "Path=/api"));
    }
}
