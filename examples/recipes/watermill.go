package recipes

import (
	"context"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"github.com/pgidem/idempotency"
)

// A produced message is recorded as the value, so that a redelivery publishes the very same
// one again, with its UUID: whoever gets it can tell that it is the same.
type produced struct {
	UUID     string
	Metadata message.Metadata
	Payload  []byte
}

// once makes a handler of Watermill of a function that writes in tx. Router publishes what
// it returns, after the commit. A process that dies in between publishes it when the message
// comes again.
func once(store *idempotency.Store, operation string, h func(ctx context.Context, tx pgx.Tx, m *message.Message) ([]*message.Message, error)) message.HandlerFunc {
	return func(m *message.Message) ([]*message.Message, error) {
		key := idempotency.Key{Scope: operation, ID: m.UUID, Fingerprint: idempotency.FingerprintOf(m.Payload)}
		recorded, _, err := idempotency.Do(m.Context(), store, key, func(ctx context.Context, tx pgx.Tx) ([]produced, error) {
			run := m.Copy() // the function may run again, and finds the message as it was
			run.SetContext(ctx)
			out, err := h(ctx, tx, run)
			values := make([]produced, len(out))
			for i, p := range out {
				values[i] = produced{p.UUID, p.Metadata, p.Payload}
			}
			return values, err
		})
		out := make([]*message.Message, len(recorded))
		for i, p := range recorded {
			out[i] = message.NewMessage(p.UUID, p.Payload)
			out[i].Metadata = p.Metadata
		}
		return out, err
	}
}

// settled is a middleware for a Router: it tries again in place, since not every broker
// behind Watermill can deliver later, and publishes what is hopeless to the topic dead.
// Without it an error is a Nack, and most brokers deliver the message again at once.
func settled(publisher message.Publisher, dead string) message.HandlerMiddleware {
	return func(h message.HandlerFunc) message.HandlerFunc {
		return func(m *message.Message) ([]*message.Message, error) {
			ctx := m.Context()
			for delivery := 1; ; delivery++ {
				out, err := h(m)
				switch what, after := settle(err, delivery); what {
				case acknowledge:
					return out, nil
				case retry:
					if err := sleep(ctx, after); err != nil {
						return nil, err
					}
				default:
					letter := m.Copy() // with its UUID
					letter.Metadata.Set("reason", err.Error())
					return nil, publisher.Publish(dead, letter)
				}
			}
		}
	}
}
