package idemgrpc

import (
	"errors"
	"fmt"

	"github.com/pgidem/idempotency/internal/transport"
	"google.golang.org/genproto/googleapis/rpc/code"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// record is the answer of the last run as it is stored.
func (c *call) record(final *finalError) (rec transport.Record, err error) {
	rec.Header = transport.ToOctets(c.last.header)
	rec.Trailer = transport.ToOctets(c.last.trailer)
	if final != nil {
		s := statusOf(c.err)
		if s.Code() == codes.OK {
			return rec, errors.New("its status is OK, and it is an error")
		}
		rec.Code, rec.Message = code.Code(s.Code()).String(), s.Message()
		rec.Status, err = marshal(s.Proto())
		return rec, err
	}
	response, ok := c.response.(proto.Message)
	if !ok {
		return rec, fmt.Errorf("the handler has returned a %T, and no proto.Message", c.response)
	}
	rec.Code = code.Code_OK.String()
	rec.Response, err = marshal(response)
	return rec, err
}

// marshal makes equal bytes of equal messages, as people compare them.
func marshal(m proto.Message) ([]byte, error) {
	return proto.MarshalOptions{Deterministic: true}.Marshal(m)
}

// replay answers with what is recorded. The mark is in the trailer: see
// [transport.ReplayedTrailer].
func (c *call) replay(rec transport.Record) (any, error) {
	response := c.responseType.New().Interface()
	final := new(statuspb.Status)
	if err := errors.Join(proto.Unmarshal(rec.Response, response), proto.Unmarshal(rec.Status, final)); err != nil {
		return nil, c.refuse(transport.RefusalOf(transport.Undecodable), fmt.Errorf("idemgrpc: the recorded answer: %w", err))
	}
	trailer := metadata.MD(transport.FromOctets(rec.Trailer))
	trailer.Set(transport.ReplayedTrailer, "true")
	c.deliver(transport.FromOctets(rec.Header), trailer)
	if final.GetCode() != int32(codes.OK) {
		return nil, status.FromProto(final).Err()
	}
	return response, nil
}
