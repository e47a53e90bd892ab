#!/usr/bin/perl
our ($name, $value) = ("one", 1.5);
format STDOUT_TOP =
Name   Value
------------
.
format STDOUT =
@<<<<< @##.##
$name, $value
.
write; ($name, $value) = ("second long", 22.345); write;
print "$^ $~ $= $-\n";
my $old = select STDERR; $~ = "OTHER"; select $old;
