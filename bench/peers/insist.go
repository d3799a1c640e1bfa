package peers

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"
)

// Insist calls until there is an answer, as an HTTP client does that is told to
// come back: after 25 to 75 ms. Errors other than ErrInProgress end it.
func Insist(ctx context.Context, client Client, call *Call) (string, error) {
	for {
		answer, err := client.Do(ctx, call)
		if !errors.Is(err, ErrInProgress) || ctx.Err() != nil {
			return answer, err
		}
		select {
		case <-ctx.Done():
			return "", err
		case <-time.After(25*time.Millisecond + rand.N(50*time.Millisecond)):
		}
	}
}
