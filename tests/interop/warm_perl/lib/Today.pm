package Today;
our $today = join "-", localtime;
1;
