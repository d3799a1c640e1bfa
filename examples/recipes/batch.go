package recipes

import (
	"context"
	"sync"
)

// inLanes handles a batch of messages, up to atOnce at a time, each in a transaction of its
// own. Those of one lane are handled in their order. The first error cancels the others,
// begins no more, and is returned.
//
// Not DoTx for each message in one transaction: it saves COMMITs, but sends more and runs
// nothing in parallel, one bad message rolls back the others, and the keys of all of them
// are held until the end.
func inLanes[M any](ctx context.Context, messages []M, lane func(M) string, atOnce int, handle func(context.Context, M) error) error {
	var names []string
	lanes := make(map[string][]M)
	for _, m := range messages {
		name := lane(m)
		if lanes[name] == nil {
			names = append(names, name)
		}
		lanes[name] = append(lanes[name], m)
	}

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	next := make(chan []M)
	var workers sync.WaitGroup
	for range min(atOnce, len(names)) {
		workers.Go(func() {
			for one := range next {
				for _, m := range one {
					if ctx.Err() != nil {
						break
					}
					if err := handle(ctx, m); err != nil {
						cancel(err)
					}
				}
			}
		})
	}
	for _, name := range names {
		next <- lanes[name]
	}
	close(next)
	workers.Wait()
	return context.Cause(ctx)
}
