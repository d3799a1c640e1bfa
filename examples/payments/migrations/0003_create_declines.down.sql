drop table declines;
