package idemconnect

import (
	"errors"
	"fmt"
	"net/http"

	"connectrpc.com/connect"
	"github.com/pgidem/idempotency/internal/transport"
	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// replayedField marks a replay, in the trailer: see [transport.ReplayedTrailer].
var replayedField = http.CanonicalHeaderKey(transport.ReplayedTrailer)

// record is the answer of the last run as it is stored.
func (c *call) record() (rec transport.Record, err error) {
	rec.ReplacedHeader = replaced(c.fields.header, c.fields.outerHeader)
	rec.ReplacedTrailer = replaced(c.fields.trailer, c.fields.outerTrailer)
	header := []http.Header{own(c.fields.header, c.fields.outerHeader)}
	trailer := []http.Header{own(c.fields.trailer, c.fields.outerTrailer)}
	if c.err != nil {
		// What a client makes of an error has no place for a header: the metadata of an
		// error is both.
		trailer = append(trailer, metaOf(c.err))
		err = setError(&rec, c.err)
	} else {
		header, trailer = append(header, c.response.Header()), append(trailer, c.response.Trailer())
		err = c.setMessage(&rec)
	}
	if err != nil {
		return rec, err
	}
	rec.Header, err = toRecord(header...)
	if err == nil {
		rec.Trailer, err = toRecord(trailer...)
	}
	return rec, err
}

// metaOf is the metadata that connect-go sends with an error. It sends none of an error
// that comes from a client of its own.
func metaOf(err error) http.Header {
	e := asError(err)
	if e == nil || connect.IsWireError(err) {
		return nil
	}
	return e.Meta()
}

func setError(rec *transport.Record, err error) error {
	number, message, details := statusOf(err)
	s := &status.Status{Code: int32(number), Message: message}
	for _, d := range details {
		s.Details = append(s.Details, &anypb.Any{TypeUrl: typeURL + d.Type(), Value: d.Bytes()})
	}
	rec.Code, rec.Message = code.Code(number).String(), message
	rec.Status, err = marshal(s)
	return err
}

// typeURL is in front of the name of a message in an Any.
const typeURL = "type.googleapis.com/"

func (c *call) setMessage(rec *transport.Record) (err error) {
	message, ok := c.response.Any().(proto.Message)
	if !ok {
		return fmt.Errorf("the handler has returned a %T, and no proto.Message", c.response.Any())
	}
	rec.Code = code.Code_OK.String()
	rec.Response, err = marshal(message)
	return err
}

// marshal makes equal bytes of equal messages, as people compare them.
func marshal(m proto.Message) ([]byte, error) {
	return proto.MarshalOptions{Deterministic: true}.Marshal(m)
}

// A replayedResponse is a response whose type is known only at run time, as the T of a
// connect.Response.
type replayedResponse struct {
	*connect.Response[struct{}] // for its header and trailer
	message                     proto.Message
}

func (r *replayedResponse) Any() any { return r.message }

// replay answers with what is recorded.
func (c *call) replay(rec transport.Record) (connect.AnyResponse, error) {
	message, final := c.responseType.New().Interface(), new(status.Status)
	if err := errors.Join(proto.Unmarshal(rec.Response, message), proto.Unmarshal(rec.Status, final)); err != nil {
		return nil, c.refuse(transport.RefusalOf(transport.Undecodable), fmt.Errorf("idemconnect: the recorded answer: %w", err))
	}
	remove(c.fields.header, rec.ReplacedHeader)
	remove(c.fields.trailer, rec.ReplacedTrailer)
	if final.GetCode() == int32(code.Code_OK) {
		response := &replayedResponse{connect.NewResponse(&struct{}{}), message}
		fromRecord(response.Header(), rec.Header)
		fromRecord(response.Trailer(), rec.Trailer)
		response.Trailer().Set(replayedField, "true")
		return response, nil
	}
	fromRecord(c.fields.header, rec.Header)
	fromRecord(c.fields.trailer, rec.Trailer)
	c.fields.trailer.Set(replayedField, "true")
	failed := connect.NewError(connect.Code(final.GetCode()), errors.New(final.GetMessage()))
	for _, d := range final.GetDetails() {
		if detail, err := connect.NewErrorDetail(d); err == nil { // as it is for an Any
			failed.AddDetail(detail)
		}
	}
	return nil, failed
}
