package history

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// A Witness is what the database knows about a history. Its rows are written by
// triggers, in the same transactions as what they tell of, so it settles which
// of the calls without an answer have taken effect.
type Witness struct {
	Effects     []Effect
	Generations []Generation
	Removals    []Removal
}

// An Effect is a committed row of the business function.
type Effect struct {
	Execution, Key, Fate string
}

// A Generation is a recorded result: the time from one execution of a key to the
// next.
type Generation struct {
	Key, Execution         string
	CompletedAt, ExpiresAt time.Time
}

// A Removal is a deleted row of a key.
type Removal struct {
	Key, Execution string
	ExpiresAt      time.Time
	Remover        string // purge, or the call of a Delete
	RemovedAt      time.Time
}

const remover = "purge" // of rows that have expired

// witnessSQL makes the tables of the witness, what the statement of QueryRow calls, and
// COMMITs that take their time or fail: a commit in doubt is interesting as long as it is
// under way.
//
// Each run of the statement draws its fate: it fails, or returns two rows where one is
// wanted, or takes longer than MaxIdle, or succeeds.
const witnessSQL = `
create table effects (execution text not null, key text not null, fate text not null);

create table generations (
	key text not null, execution text not null,
	completed_at timestamptz not null, expires_at timestamptz not null
);
create function note_generation() returns trigger language plpgsql as $$
begin
	insert into generations values (
		new.id, convert_from(new.result, 'UTF8')::jsonb #>> '{}', new.completed_at, new.expires_at);
	return null;
end $$;
create trigger note_generation after update on idempotency_keys for each row
	when (new.completed_at is not null and new.completed_at is distinct from old.completed_at)
	execute function note_generation();
create trigger note_first_generation after insert on idempotency_keys for each row
	when (new.completed_at is not null)
	execute function note_generation();

create table removals (
	key text not null, execution text not null, expires_at timestamptz not null,
	remover text not null, removed_at timestamptz not null
);
create function note_removal() returns trigger language plpgsql as $$
begin
	insert into removals values (
		old.id, convert_from(old.result, 'UTF8')::jsonb #>> '{}', old.expires_at,
		current_setting('application_name'), clock_timestamp());
	return null;
end $$;
create trigger note_removal after delete on idempotency_keys for each row
	execute function note_removal();

create function draw() returns setof text language plpgsql as $$
declare n float := random() * 100;
begin
	if random() < 0.5 then
		perform pg_sleep(random() * 0.01);
	end if;
	if n < 15 then
		return next 'fails';
	elsif n < 20 then
		return next 'doubles';
		return next 'doubles';
	elsif n < 21 then
		return next 'dawdles';
	else
		return next 'succeeds';
	end if;
end $$;
create function conclude(execution text, fate text) returns text language plpgsql as $$
begin
	if random() < 0.5 then
		perform pg_sleep(random() * 0.01);
	end if;
	if fate = 'fails' then
		raise 'declined';
	elsif fate = 'dawdles' then
		perform pg_sleep(0.25);
	end if;
	return execution;
end $$;

create function linger() returns trigger language plpgsql as $$
begin
	if random() < 0.2 then
		perform pg_sleep(random() * 0.15);
	end if;
	if random() < 0.01 then
		raise 'the COMMIT fails';
	end if;
	return null;
end $$;
create constraint trigger linger after insert on effects
	deferrable initially deferred for each row execute function linger();`

// forgetSQL makes the database as good as new. It waits for what the processes of
// the last history have left behind.
const forgetSQL = `truncate effects, generations, removals, idempotency_keys`

// readWitness reads the tables when all transactions that have written to them
// have ended.
func readWitness(ctx context.Context, pool *pgxpool.Pool) (Witness, error) {
	var w Witness
	err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) (err error) {
		if _, err := tx.Exec(ctx, `lock table effects, generations, removals in share mode`); err != nil {
			return err
		}
		w.Effects, err = rows[Effect](ctx, tx, `select execution, key, fate from effects`)
		if err != nil {
			return err
		}
		w.Generations, err = rows[Generation](ctx, tx, `
			select key, execution, completed_at, expires_at from generations order by completed_at`)
		if err != nil {
			return err
		}
		w.Removals, err = rows[Removal](ctx, tx, `
			select key, execution, expires_at, remover, removed_at from removals order by removed_at`)
		return err
	})
	return w, err
}

func rows[T any](ctx context.Context, tx pgx.Tx, sql string) ([]T, error) {
	found, _ := tx.Query(ctx, sql)
	return pgx.CollectRows(found, pgx.RowToStructByPos[T])
}
