-- name: InsertCharge :one
insert into charges (account, cents) values ($1, $2) returning *;

-- name: ChargesOf :many
select * from charges where account = $1 order by id;
