#!/usr/bin/perl
print `echo one`; print "$?\n";
system "exit 5"; print $? >> 8, "\n";
system { "/bin/sh" } "sh", "-c", "echo \$0 \$#", "x"; 
print scalar qx(kill -TERM \$\$), $? & 127, "\n";
open my $p, '|-', 'cat' or die; print $p "to cat\n"; close $p;
exec "echo", "replaced";
