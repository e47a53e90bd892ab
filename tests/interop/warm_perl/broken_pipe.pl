#!/usr/bin/perl
open my $p, '|-', 'exit 0'; 
sleep 0; select undef, undef, undef, 0.1;
$| = 1;
print "before\n";
{ my $o = select $p; $| = 1; select $o; }
print $p "x" for 1 .. 10;
print "after\n";
