package doctor

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/pgidem/idempotency/internal/keytable"
)

// unfinishedSQL: an hour is longer than a client retries, and than Store.Complete waits
// between two attempts. A call that stands for its window (23 h by default) is not made
// again.
const unfinishedSQL = `
select count(*), coalesce(extract(epoch from clock_timestamp() - min(progressed_at)), 0::numeric)::bigint, coalesce(max(attempts), 0)
from idempotency_operations
where progressed_at < clock_timestamp() - interval '1 hour'`

// checkUnfinished looks for operations of procedures with which nothing goes on. The
// table is missing before the migration that makes it.
func checkUnfinished(ctx context.Context, p *patient) error {
	if p.table == nil || !p.table.trusted() {
		return nil
	}
	name := p.table.sibling(keytable.Operations)
	var operations, seconds, attempts int64
	err := p.read(ctx, "looking for unfinished operations", keytable.Operations, strings.Replace(unfinishedSQL, keytable.Operations, name, 1), &operations, &seconds, &attempts)
	refused, is := errors.AsType[untrusted](err)
	switch {
	case is:
		p.find(Error, "unfinished", refused.found+": nothing of it was read", refused.remedy)
		return nil
	case unreadable(err):
		return nil
	case err != nil:
		return err
	case operations > 0:
		tried := "Store.Complete has not tried it: run Store.CompleteEvery in the program"
		if attempts > 0 {
			tried = "Store.Complete has tried in vain: look at the last errors"
		}
		p.find(Warning, "unfinished", fmt.Sprintf("operations of procedures that have not progressed for an hour: %d, the oldest for %d h", operations, seconds/3600),
			tried+" (idempotency list -state unfinished, and get); after the window of a call (23 h by default) a person has to settle it, see docs/procedures.md")
	}
	return nil
}
