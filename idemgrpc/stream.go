package idemgrpc

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"unicode"

	"github.com/pgidem/idempotency/internal/transport"
	"google.golang.org/grpc/metadata"
)

var (
	errHeaderSent   = errors.New("idemgrpc: the handler has sent its header already")
	errHandlerEnded = errors.New("idemgrpc: the handler has returned: its header and trailer are sent, or recorded")
)

// A heldBack is the stream of one run of a handler: grpc.SetHeader, SendHeader and
// SetTrailer lead here. Nothing is sent before the transaction has committed, and what
// an earlier run has set is gone with it.
//
// It is a grpc.ServerTransportStream. What grpc-go does on its own stream alone, such as
// grpc.SetSendCompressor, returns an error under it, as under every stream of others.
type heldBack struct {
	method string

	mu              sync.Mutex // a handler may have goroutines
	header, trailer metadata.MD
	sent            bool // SendHeader
	ended           bool
}

func (h *heldBack) Method() string { return h.method }

func (h *heldBack) SetHeader(md metadata.MD) error { return h.addHeader(md, false) }

// SendHeader sends nothing: the client would hear what a failed commit has to take back.
func (h *heldBack) SendHeader(md metadata.MD) error { return h.addHeader(md, true) }

func (h *heldBack) addHeader(md metadata.MD, send bool) error {
	if err := checkSendable(md); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.ended:
		return errHandlerEnded
	case h.sent:
		return errHeaderSent
	}
	h.header, h.sent = metadata.Join(h.header, md), send
	return nil
}

func (h *heldBack) SetTrailer(md metadata.MD) error {
	if err := checkSendable(md); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ended {
		return errHandlerEnded
	}
	h.trailer = metadata.Join(h.trailer, md)
	return nil
}

// checkSendable refuses what HTTP/2 does not carry. A client takes a response with such a
// field for a broken one, and so it would take every replay.
func checkSendable(md metadata.MD) error {
	const allowed = "abcdefghijklmnopqrstuvwxyz0123456789-_." // in metadata, by the gRPC protocol over HTTP/2
	for name, values := range md {
		if name == "" || strings.Trim(name, allowed) != "" {
			return fmt.Errorf("idemgrpc: %q is no name for metadata", name)
		}
		if strings.HasSuffix(name, "-bin") {
			continue // encoded by grpc-go
		}
		if slices.ContainsFunc(values, func(value string) bool { return strings.ContainsFunc(value, unicode.IsControl) }) {
			return fmt.Errorf("idemgrpc: the metadata %q has a control character in its value", name)
		}
	}
	return nil
}

// end is for when the handler has ended. The mark of a replay is ours: it can come from
// a server behind the handler, which passes metadata on.
func (h *heldBack) end() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ended = true
	delete(h.header, transport.ReplayedTrailer)
	delete(h.trailer, transport.ReplayedTrailer)
}
