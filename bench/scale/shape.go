package scale

import (
	"crypto/md5"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math/rand/v2"

	"github.com/google/uuid"
	"github.com/pgidem/idempotency"
)

// A shape is the kind of ids and scopes that a table is full of.
type shape struct {
	name   string
	random bool // ids are in no order, as UUIDv4; else by time, as UUIDv7
	scopes int64
}

// The first one is purged, too.
var allShapes = []shape{
	{"time-ordered ids, one scope", false, 1},
	{"time-ordered ids, a million scopes", false, 1_000_000},
	{"random ids, one scope", true, 1},
}

// firstMillisecond is the time in the id of row 0 of a time-ordered table; each
// row is a millisecond later. It is long ago: new ids are at the right edge.
const firstMillisecond = 1_577_836_800_000

// fillSQL makes a procedure that fills the table as calls do, so that the pages come
// to look as they do in earnest: it inserts a row as it is claimed, updates it as
// its result is recorded, and commits, every step-th row. Rows that are there
// already it leaves alone. The texts are those of keyOf.
const fillSQL = `
create procedure pg_temp.fill(first bigint, last bigint, step bigint, random boolean, scopes bigint, expires interval)
language plpgsql as $$
declare
	i bigint := first; -- a for loop would have an integer
	m text; t text; new_id text; new_scope text; at tid;
begin
	while i <= last loop
		m := md5(i::text);
		t := lpad(to_hex(1577836800000 + i), 12, '0');
		new_id := case when random
			then substr(m, 1, 8) || '-' || substr(m, 9, 4) || '-4' || substr(m, 13, 3) || '-8' || substr(m, 16, 3) || '-' || substr(m, 19, 12)
			else substr(t, 1, 8) || '-' || substr(t, 9, 4) || '-7' || substr(m, 1, 3) || '-8' || substr(m, 4, 3) || '-' || substr(m, 7, 12)
			end;
		new_scope := 'customer-' || i * 7919 % scopes;
		insert into idempotency_keys (purge_after, id, scope)
		values (now() + expires, new_id, new_scope)
		on conflict (id, scope) do nothing returning ctid into at;
		update idempotency_keys
		set completed_at = now(), expires_at = now() + expires, fingerprint = sha256(convert_to(new_id, 'UTF8')),
			result = convert_to('"' || rpad('charge ' || i, 318, 'x') || '"', 'UTF8')
		where id = new_id and scope = new_scope and ctid >= at and ctid <= at;
		commit;
		i := i + step;
	end loop;
end $$`

// keyOf is the key of row i.
func (s shape) keyOf(i int64) idempotency.Key {
	sum := md5.Sum(fmt.Append(nil, i))
	m := hex.EncodeToString(sum[:])
	id := fmt.Sprintf("%s-%s-4%s-8%s-%s", m[:8], m[8:12], m[12:15], m[15:18], m[18:30])
	if !s.random {
		t := fmt.Sprintf("%012x", firstMillisecond+i)
		id = fmt.Sprintf("%s-%s-7%s-8%s-%s", t[:8], t[8:], m[:3], m[3:6], m[6:18])
	}
	return s.key(i*7919%s.scopes, id)
}

// newKey is one that is not in the table.
func (s shape) newKey() idempotency.Key {
	id := uuid.New()
	if !s.random {
		id = uuid.Must(uuid.NewV7())
	}
	return s.key(rand.Int64N(s.scopes), id.String())
}

func (s shape) key(scope int64, id string) idempotency.Key {
	return idempotency.Key{Scope: fmt.Sprint("customer-", scope), ID: id, Fingerprint: sha256.Sum256([]byte(id))}
}
