package idemhttp

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

var (
	errEventStream = errors.New("idemhttp: an event stream cannot be recorded: serve it on a route of its own")
	errGRPC        = errors.New("idemhttp: gRPC, and what streams as it does, says in its last message whether it has failed, under the status 200: serve it outside of the Middleware, with package idemgrpc or idemconnect")
	errUpgrade     = errors.New("idemhttp: 101 Switching Protocols cannot be recorded: serve it on a route of its own")
	errHijack      = fmt.Errorf("idemhttp: the connection cannot be taken over, since its response is recorded: %w", http.ErrNotSupported)
)

// A response is what a handler writes to: everything is held back until the
// commit has succeeded. It does what the ResponseWriter of net/http does, with
// these differences:
//   - Flush sends nothing, and 1xx responses are dropped: the client hears
//     nothing that a failed commit would have to take back.
//   - Hijack and full duplex fail, and 101 and event streams make the request
//     fail: they cannot be recorded.
//   - A body that is shorter than the handler's Content-Length makes the
//     request fail; net/http can only cut the connection then.
//
// It has no Unwrap method, so nothing goes around it.
type response struct {
	w      http.ResponseWriter
	outer  http.Header // as outer middleware has left it
	live   http.Header // what the handler sees
	status int         // 0: not yet

	// From WriteHeader on:
	header   http.Header
	body     bytes.Buffer
	trailer  http.Header
	declared int64 // Content-Length, or -1
	refused  error // the response is one that cannot be recorded
}

func newResponse(w http.ResponseWriter) *response {
	return &response{w: w, outer: w.Header().Clone(), live: cloned(w.Header()), declared: -1}
}

func cloned(h http.Header) http.Header {
	if c := h.Clone(); c != nil {
		return c
	}
	return make(http.Header)
}

func (p *response) Header() http.Header { return p.live }

func (p *response) WriteHeader(status int) {
	if status < 100 || status > 999 {
		panic(fmt.Sprintf("idemhttp: invalid WriteHeader code %v", status)) // as net/http
	}
	informational := status < 200 && status != http.StatusSwitchingProtocols
	if p.status != 0 || informational {
		return
	}
	p.status, p.header = status, p.live.Clone()
	if length, err := strconv.ParseInt(p.header.Get("Content-Length"), 10, 64); err == nil && length >= 0 {
		p.declared = length
	}
	switch mediaType := mediaTypeOf(p.header); {
	case status == http.StatusSwitchingProtocols:
		p.refused = errUpgrade
	case mediaType == "text/event-stream":
		p.refused = errEventStream
	case strings.HasPrefix(mediaType, "application/grpc"), strings.HasPrefix(mediaType, "application/connect+"):
		p.refused = errGRPC
	}
}

func (p *response) Write(data []byte) (int, error) {
	if err := p.admit(len(data)); err != nil {
		return 0, err
	}
	return p.body.Write(data)
}

func (p *response) WriteString(data string) (int, error) {
	if err := p.admit(len(data)); err != nil {
		return 0, err
	}
	return p.body.WriteString(data)
}

func (p *response) admit(length int) error {
	if p.status == 0 {
		p.WriteHeader(http.StatusOK)
	}
	switch {
	case p.refused != nil:
		return p.refused
	case !bodyAllowed(p.status):
		return http.ErrBodyNotAllowed
	case p.declared >= 0 && int64(p.body.Len()+length) > p.declared:
		return http.ErrContentLength
	}
	return nil
}

func (p *response) Flush() { _ = p.FlushError() }

// FlushError is Flush for [http.ResponseController].
func (p *response) FlushError() error {
	if p.status == 0 {
		p.WriteHeader(http.StatusOK)
	}
	return p.refused
}

func (p *response) Hijack() (net.Conn, *bufio.ReadWriter, error) { return nil, nil, errHijack }

// The deadlines are of the connection, and good for it.

func (p *response) SetReadDeadline(t time.Time) error {
	return http.NewResponseController(p.w).SetReadDeadline(t)
}

func (p *response) SetWriteDeadline(t time.Time) error {
	return http.NewResponseController(p.w).SetWriteDeadline(t)
}

// finish is for when the handler has returned.
func (p *response) finish() error {
	if p.status == 0 {
		p.WriteHeader(http.StatusOK)
	}
	if p.refused == nil && bodyAllowed(p.status) && p.declared > int64(p.body.Len()) {
		p.refused = fmt.Errorf("idemhttp: the handler declared a body of %d bytes and wrote %d", p.declared, p.body.Len())
	}
	p.trailer = p.trailers()
	if p.refused == nil && (p.header["Grpc-Status"] != nil || p.trailer["Grpc-Status"] != nil) {
		p.refused = errGRPC
	}
	maps.DeleteFunc(p.header, func(name string, _ []string) bool { return !isToken(name) }) // marked trailers, too
	for _, framing := range []string{"Content-Length", "Transfer-Encoding", "Trailer"} {
		delete(p.header, framing)
	}
	p.sniff()
	return p.refused
}

// isToken reports whether a text can be the name of a field (RFC 9110, section
// 5.6.2). net/http drops fields of any other name without a word, and so are they
// dropped here: JSON could not keep a name that is not UTF-8. Values stay as they
// are: what net/http makes of a newline in one depends on the protocol, and it
// does so in a replay too.
func isToken(name string) bool {
	const allowed = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789!#$%&'*+-.^_`|~"
	return name != "" && strings.Trim(name, allowed) == ""
}

// trailers are the values, set after the header, of announced fields and of
// those that [http.TrailerPrefix] marks. The framing cannot be in a trailer:
// clients refuse the whole response then.
func (p *response) trailers() http.Header {
	t := make(http.Header)
	for _, name := range strings.Split(strings.Join(p.header["Trailer"], ","), ",") {
		name = http.CanonicalHeaderKey(strings.Trim(name, " \t"))
		if values := p.live[name]; len(values) > 0 {
			t[name] = values
		}
	}
	for name, values := range p.live {
		if name, marked := strings.CutPrefix(name, http.TrailerPrefix); marked {
			t[http.CanonicalHeaderKey(name)] = values
		}
	}
	maps.DeleteFunc(t, func(name string, _ []string) bool { return !isToken(name) || matches(name, hopByHop) })
	return t
}

// sniff sets the Content-Type as net/http would, so that it is recorded too.
func (p *response) sniff() {
	_, typed := p.header["Content-Type"]
	if !typed && p.body.Len() > 0 && p.header.Get("Content-Encoding") == "" {
		p.header.Set("Content-Type", http.DetectContentType(p.body.Bytes()))
	}
}

// record is the response as it is stored. What outer middleware has put into
// the header is not the response's: it will do so again.
func (p *response) record(m *Middleware) (record, error) {
	own, added := p.ownFields()
	connection := p.header["Connection"]
	r := record{
		Status:  p.status,
		Header:  toOctets(m.recorded(own, connection)),
		Added:   toOctets(m.recorded(added, connection)),
		Deleted: p.deletedFields(),
		Body:    p.body.Bytes(),
		Trailer: toOctets(m.recorded(p.trailer, nil)),
	}
	return r.fitting(m.cfg.MaxRecord)
}

// ownFields are those that the handler has set, and those that it has added
// values to.
func (p *response) ownFields() (own, added http.Header) {
	own, added = make(http.Header, len(p.header)), make(http.Header)
	for name, values := range p.header {
		outer, began := p.outer[name]
		switch {
		case !began || len(values) < len(outer) || !slices.Equal(values[:len(outer)], outer):
			own[name] = values
		case len(values) > len(outer):
			added[name] = values[len(outer):]
		}
	}
	return own, added
}

// deletedFields are those of outer middleware that the handler has deleted. The
// framing is not the handler's.
func (p *response) deletedFields() (names []string) {
	for name := range p.outer {
		if _, kept := p.header[name]; !kept && isToken(name) && !matches(name, hopByHop) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// deliver sends the response, whole, to the client that caused it.
func (p *response) deliver() {
	h := p.w.Header()
	for _, name := range p.deletedFields() {
		delete(h, name)
	}
	for _, ours := range []string{replayedHeader, omittedHeader} { // of a server behind the handler
		delete(p.header, ours)
		delete(h, ours)
	}
	send(p.w, p.status, p.header, p.body.Bytes(), p.trailer)
}
