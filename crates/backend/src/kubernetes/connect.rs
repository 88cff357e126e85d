//! The way to the API server: access as it is described, connections that notice a dead end, and why one did not come about.

use std::error::Error;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use http::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::legacy::{Client, Error as ClientError};
use hyper_util::rt::TokioExecutor;
use kube::Config;
use kube::client::{AuthError, Body, ConfigExt};
use kube::config::{AuthInfo, KubeConfigOptions, Kubeconfig};
use rustls::AlertDescription;
use tower::{BoxError, ServiceBuilder};

use super::error::ApiError;
use super::proxy;
use super::token::TokenFile;

/// How long a connection may take.
const CONNECTING: Duration = Duration::from_secs(5);
/// A connection that is quiet for so long is asked whether its other end is still there, and so often again.
const PROBE: Duration = Duration::from_secs(15);
/// After so many probes without an answer it is broken.
const PROBES: u32 = 3;
/// Bytes that were sent and not acknowledged for so long break it, too.
const UNACKNOWLEDGED: Duration = Duration::from_secs(45);

/// Access, and through which proxy it leads.
pub struct Access {
    /// Sends requests.
    pub client: kube::Client,
    /// From the kubeconfig or HTTPS_PROXY, without a password.
    pub proxy: Option<String>,
    /// Where the token is that requests carry; without, the client adds what they need.
    pub token: Option<TokenFile>,
}

/// With what the file says, without one what KUBECONFIG, `~/.kube/config` or the pod's service account say. Connects to
/// nothing yet.
///
/// # Errors
/// [`ApiError::Config`].
pub async fn access(kubeconfig: Option<&Path>) -> Result<Access, ApiError> {
    let mut config = config(kubeconfig).await?;
    let token = token(&mut config.auth_info)?;
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_nodelay(true);
    http.set_connect_timeout(Some(CONNECTING));
    http.set_keepalive(Some(PROBE));
    http.set_keepalive_interval(Some(PROBE));
    http.set_keepalive_retries(Some(PROBES));
    http.set_tcp_user_timeout(Some(UNACKNOWLEDGED));
    let proxy = config.proxy_url.clone();
    let client = match &proxy {
        None => client(&config, http),
        Some(url) if url.scheme_str() == Some("http") && !proxy::has_password(url) => {
            client(&config, Tunnel::new(url.clone(), http))
        }
        // TLS to the proxy, or a password: the library knows how.
        Some(_) => kube::Client::try_from(config),
    };
    Ok(Access {
        client: client.map_err(|error| unusable(&error))?,
        proxy: proxy.map(|url| proxy::shown(&url)),
        token,
    })
}

/// What is said of access.
///
/// # Errors
/// [`ApiError::Config`].
pub async fn config(kubeconfig: Option<&Path>) -> Result<Config, ApiError> {
    let file = match kubeconfig {
        Some(path) => Kubeconfig::read_from(path).map_err(|error| unusable(&error)),
        None => Kubeconfig::read().map_err(|error| unusable(&error)),
    };
    let read = async {
        let file = file?;
        let stated = proxy::stated(&file).map(str::to_owned);
        let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await;
        let mut config = config.map_err(|error| unusable(&error))?;
        config.proxy_url = proxy::of(&config.cluster_url, stated.as_deref(), &|name| std::env::var(name).ok())?;
        Ok(config)
    };
    match read.await {
        // In a pod; it says both reasons if it is none.
        Err(_) if kubeconfig.is_none() => Config::infer().await.map_err(|error| unusable(&error)),
        read => read,
    }
}

fn unusable(error: &dyn Error) -> ApiError {
    ApiError::Config(chain(error))
}

/// The token's file, taken from what the library would do about it, if it is what counts among these credentials.
fn token(auth: &mut AuthInfo) -> Result<Option<TokenFile>, ApiError> {
    let has_password = auth.username.is_some() && auth.password.is_some();
    if auth.auth_provider.is_some() || has_password || auth.token.is_some() {
        return Ok(None);
    }
    let file = auth.token_file.take();
    if file.is_some() {
        auth.exec = None;
    }
    file.map(|file| TokenFile::open(file, Instant::now())).transpose()
}

/// The library's own client, but with our connections and without a line of log for each request that fails.
pub fn client<C>(config: &Config, connector: C) -> Result<kube::Client, kube::Error>
where
    C: tower::Service<Uri> + Clone + Send + Sync + 'static,
    C::Response: hyper_util::client::legacy::connect::Connection + hyper::rt::Read + hyper::rt::Write + Send + Unpin,
    C::Future: Send + 'static,
    C::Error: Into<BoxError>,
{
    let https = config.rustls_https_connector_with_connector(connector)?;
    let sender: Client<_, Body> = Client::builder(TokioExecutor::new()).build(https);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(sender);
    Ok(kube::Client::new(service, config.default_namespace.clone()))
}

/// Why a request did not get as far as an answer.
pub fn blame(error: &kube::Error, proxy: Option<&str>) -> ApiError {
    let text = chain(error);
    // Also a token that cannot be sent, as one with a line's end in it.
    if matches!(error, kube::Error::Auth(_)) || find::<AuthError>(error).is_some() {
        return ApiError::Unauthorized(text);
    }
    match find::<rustls::Error>(error) {
        Some(rustls::Error::AlertReceived(alert)) if is_about_ours(*alert) => return ApiError::Unauthorized(text),
        Some(rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented) => {
            return ApiError::Certificate(text);
        }
        Some(_) => return ApiError::Half(text),
        None => {}
    }
    let connecting = find::<ClientError>(error).is_some_and(ClientError::is_connect);
    match (connecting, proxy) {
        (true, Some(proxy)) => ApiError::Proxy {
            proxy: proxy.to_owned(),
            message: text,
        },
        (true, None) => ApiError::Unreachable(text),
        // It was connected, and the other end left before it had answered.
        (false, _) => ApiError::Half(text),
    }
}

/// Whether the server refuses the certificate that we show it.
fn is_about_ours(alert: AlertDescription) -> bool {
    matches!(
        alert,
        AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
            | AlertDescription::CertificateRequired
    )
}

/// The first error of a type among the causes.
fn find<'a, E: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<E>() {
            return Some(found);
        }
        // An I/O error names as its cause the cause of what it wraps.
        let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = match wrapped {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

/// An error with all its causes: the outermost says little.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let said = inner.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_found_inside_of_io_errors() {
        let tls = rustls::Error::InvalidCertificate(rustls::CertificateError::Expired);
        let wrapped = io::Error::other(io::Error::new(io::ErrorKind::InvalidData, tls));
        assert!(matches!(
            find::<rustls::Error>(&wrapped),
            Some(rustls::Error::InvalidCertificate(_))
        ));
        assert!(find::<rustls::Error>(&io::Error::other("no")).is_none());
    }
}
