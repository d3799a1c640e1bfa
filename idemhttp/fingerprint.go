package idemhttp

import (
	"cmp"
	"crypto/hmac"
	"crypto/sha256"
	"mime"
	"net/http"
	"net/url"
	"strings"

	"github.com/pgidem/idempotency"
)

// sinceFirst are fields of fingerprintHeaders that v0.1.0 did not look at. A
// request without them has the same fingerprint as there, so that its retry is
// replayed after an upgrade.
var sinceFirst = []string{"Content-Language", "Content-Disposition", "Content-Range"}

// fingerprintHeaders are the fields that say what the bytes of a body mean (RFC
// 9110, sections 8.3 to 8.5 and 14.5; RFC 6266 for the name of a file). They are
// the default of Config.FingerprintHeaders.
var fingerprintHeaders = append([]string{"Content-Type", "Content-Encoding"}, sinceFirst...)

// fingerprint is what a request asks for: its method and target, the values of
// selected header fields, and its body. Whoever changes a rule makes another
// request of each one that is under way during the upgrade: its retry is refused
// as 422. So requests that are told apart rightly keep their fingerprints.
func fingerprint(r *http.Request, body []byte, fields []string) idempotency.Fingerprint {
	parts := [][]byte{[]byte("idemhttp/1"), []byte(r.Method), []byte(r.URL.EscapedPath()), []byte(r.URL.RawQuery)}
	for _, name := range fields {
		values := fieldValues(r, name)
		if len(values) > 0 || !matches(name, sinceFirst) {
			parts = append(parts, []byte(strings.ToLower(name)), []byte(normalField(name, values)))
		}
	}
	if path := arrivedPath(r); path != r.URL.EscapedPath() {
		parts = append(parts, []byte("arrived"), []byte(path))
	}
	return idempotency.FingerprintOf(append(parts, content(r.Header, body)...)...)
}

// content is what a body says: a kind, and one or more parts of it. To the bytes
// of a multipart body belongs its boundary, without which they mean nothing.
func content(h http.Header, body []byte) [][]byte {
	mediaType := mediaTypeOf(h)
	if strings.Join(h.Values("Content-Encoding"), "") == "" {
		if isJSONType(mediaType) {
			if canonical, err := canonicalJSON(body); err == nil {
				return [][]byte{[]byte("json"), canonical}
			}
		}
		if parts, err := canonicalMultipart(h.Get("Content-Type"), body); err == nil {
			return append([][]byte{[]byte("multipart")}, parts...)
		}
	}
	if isMultipart(mediaType) {
		return [][]byte{[]byte("bytes"), body, []byte(strings.Join(h.Values("Content-Type"), ", "))}
	}
	return [][]byte{[]byte("bytes"), body}
}

// fieldValues are those of a request header field. net/http keeps Host apart.
func fieldValues(r *http.Request, name string) []string {
	if strings.EqualFold(name, "Host") {
		return []string{strings.ToLower(r.Host)}
	}
	return r.Header.Values(name)
}

// arrivedPath is the path that the client has sent, where outer middleware has
// changed it since, as [http.StripPrefix] does: /eu/charges and /us/charges are
// two requests.
func arrivedPath(r *http.Request) string {
	if arrived, err := url.ParseRequestURI(r.RequestURI); err == nil {
		return arrived.EscapedPath()
	}
	return r.URL.EscapedPath()
}

// normalField is one text for the spellings of a field that mean the same. A
// media type has several (RFC 9110, section 8.3.1). JSON is UTF-8 whether that is
// said or not (RFC 8259, sections 8.1 and 11), and a multipart boundary is new in
// each attempt.
func normalField(name string, values []string) string {
	text := strings.Join(values, ", ")
	if !strings.EqualFold(name, "Content-Type") {
		return text
	}
	mediaType, params, err := parseMediaType(text)
	if err != nil {
		return text
	}
	if charset, ok := params["charset"]; ok {
		params["charset"] = strings.ToLower(charset)
	}
	if isJSONType(mediaType) && params["charset"] == "utf-8" {
		delete(params, "charset")
	}
	if isMultipart(mediaType) {
		delete(params, "boundary")
	}
	return cmp.Or(mime.FormatMediaType(mediaType, params), text)
}

// maxMediaType is how many bytes of a Content-Type are looked at. The longest
// that are in use have a few hundred; each parameter of a hostile one takes many
// times its size.
const maxMediaType = 4096

func parseMediaType(text string) (mediaType string, params map[string]string, err error) {
	if len(text) > maxMediaType {
		return "", nil, mime.ErrInvalidMediaParameter
	}
	return mime.ParseMediaType(text)
}

// mediaTypeOf is the type of a body, in lower case, without its parameters,
// also where those are malformed.
func mediaTypeOf(h http.Header) string {
	mediaType, _, _ := strings.Cut(h.Get("Content-Type"), ";")
	return strings.ToLower(strings.Trim(mediaType, " \t"))
}

// isJSONType reports whether a media type is JSON: by itself, or by its suffix
// (RFC 6839, section 3.1).
func isJSONType(mediaType string) bool {
	return mediaType == "application/json" || strings.HasSuffix(mediaType, "+json")
}

// keyed is the fingerprint as it is stored: with the first of
// Config.FingerprintKeys.
func (m *Middleware) keyed(f idempotency.Fingerprint) idempotency.Fingerprint {
	if len(m.cfg.FingerprintKeys) == 0 {
		return f
	}
	return hmacOf(m.cfg.FingerprintKeys[0], f)
}

// hmacOf cannot be made without the key, so that nobody finds out by trial what
// the fingerprints in a stolen table are of. An empty key is none.
func hmacOf(key []byte, f idempotency.Fingerprint) idempotency.Fingerprint {
	if len(key) == 0 {
		return f
	}
	h := hmac.New(sha256.New, key)
	h.Write(f[:])
	return idempotency.Fingerprint(h.Sum(nil))
}

// keyedFingerprints are those of this request under each key of Config.FingerprintKeys,
// and under none.
func (x *exchange) keyedFingerprints() (all []idempotency.Fingerprint) {
	for _, key := range append([][]byte{nil}, x.m.cfg.FingerprintKeys...) {
		all = append(all, hmacOf(key, x.fingerprint))
	}
	return all
}
